//! Limits the log lines that a guest can cause.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::limits;

/// A token bucket of log lines for one guest: at most [`limits::LOG_BURST`] at once, and one more
/// after each [`limits::LOG_INTERVAL`].
#[derive(Debug)]
pub(super) struct LogLimit(Mutex<State>);

#[derive(Debug)]
struct State {
    lines: u32,
    /// Start of the interval after which there is one more line.
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

    /// The number of lines left out since the last one, if a line may be written now. `None` if not,
    /// and the line counts as left out.
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
    async fn log_lines_are_limited_and_the_rest_counted() {
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
