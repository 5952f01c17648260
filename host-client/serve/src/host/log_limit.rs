//! How often a guest can have something said in the log.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::limits;

/// The lines that one guest, or whoever can be taken for it, has caused. At most
/// [`limits::LOG_BURST`] at once, and one more after each [`limits::LOG_INTERVAL`].
#[derive(Debug)]
pub(super) struct LogLimit(Mutex<State>);

#[derive(Debug)]
struct State {
    lines: u32,
    /// Since when the next line is waited for.
    since: Instant,
    left_out: u64,
}

impl LogLimit {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            lines: limits::LOG_BURST,
            since: Instant::now(),
            left_out: 0,
        }))
    }

    /// How many lines were left out since the last one, if one can be written now. `None` counts
    /// as one that is left out.
    pub(super) fn admit(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.lines < limits::LOG_BURST && state.since.elapsed() >= limits::LOG_INTERVAL {
            state.lines += 1;
            state.since += limits::LOG_INTERVAL;
        }
        if state.lines == 0 {
            state.left_out += 1;
            return None;
        }
        if state.lines == limits::LOG_BURST {
            state.since = Instant::now();
        }
        state.lines -= 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_few_and_what_is_left_out_is_counted() {
        let limit = LogLimit::new();
        for _ in 0..limits::LOG_BURST {
            assert_eq!(limit.admit(), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(limit.admit(), None);
        }
        advance(limits::LOG_INTERVAL).await;
        assert_eq!(limit.admit(), Some(1000));
        assert_eq!(limit.admit(), None);
        advance(limits::LOG_INTERVAL * 1000).await;
        for left_out in [Some(1), Some(0), Some(0), Some(0), None] {
            assert_eq!(limit.admit(), left_out);
        }
    }
}
