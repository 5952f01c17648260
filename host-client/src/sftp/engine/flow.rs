//! Limits the bytes of files in flight, in both directions together.
//!
//! The window starts small and doubles for as long as that makes the transfer faster: a larger one
//! only fills memory and caches. It is tried again now and then, because a guest's speed changes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Unit of the window, in bytes.
const UNIT_BYTES: u32 = 1024;

/// Smallest and largest window, in units: 4 MiB and 8 MiB. With less, too few of the
/// largest requests are in flight for both ends to work while several replies are due.
const UNITS: (u32, u32) = (4 * 1024, 8 * 1024);

/// A larger window is kept if it makes the transfer faster by this much, in percent.
const MIN_GAIN_PERCENT: u64 = 15;

/// Rounds before the next try, after a larger window that was not kept.
const RETRY_ROUNDS: u32 = 64;

fn units(bytes: u32) -> u32 {
    bytes.div_ceil(UNIT_BYTES).clamp(1, UNITS.0)
}

/// The session's window.
#[derive(Debug)]
pub(super) struct Flow {
    free: Arc<Semaphore>,
    pace: Mutex<Pace>,
}

/// Bytes in flight, given back when this is dropped.
#[derive(Debug)]
pub(in crate::sftp) struct Credit {
    permit: Option<OwnedSemaphorePermit>,
    flow: Arc<Flow>,
    units: u32,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self {
            free: Arc::new(Semaphore::new(usize::try_from(UNITS.0).unwrap_or(1))),
            pace: Mutex::new(Pace::new(Instant::now())),
        }
    }

    /// Waits until `bytes` more may be in flight.
    pub(super) async fn acquire(self: &Arc<Self>, bytes: u32) -> Credit {
        let units = units(bytes);
        // The semaphore is never closed.
        let permit = Arc::clone(&self.free).acquire_many_owned(units).await.ok();
        self.credit(permit, units)
    }

    /// The same without waiting.
    pub(super) fn try_acquire(self: &Arc<Self>, bytes: u32) -> Option<Credit> {
        let units = units(bytes);
        let permit = Arc::clone(&self.free).try_acquire_many_owned(units).ok()?;
        Some(self.credit(Some(permit), units))
    }

    fn credit(self: &Arc<Self>, permit: Option<OwnedSemaphorePermit>, units: u32) -> Credit {
        Credit {
            permit,
            flow: Arc::clone(self),
            units,
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        drop(self.permit.take());
        // Waiting is what shows that the window is the limit. One large file takes what is free and
        // never waits: a larger window made its push 7 % slower.
        let free = self.flow.free.available_permits();
        let is_limit = free < usize::try_from(self.units).unwrap_or(0);
        let mut pace = self
            .flow
            .pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match pace.delivered(self.units, is_limit, Instant::now()) {
            Change::None => {}
            Change::Grow => {
                let more = pace.window.min(UNITS.1 - pace.window);
                pace.window += more;
                self.flow
                    .free
                    .add_permits(usize::try_from(more).unwrap_or(0));
            }
            Change::Shrink => {
                let less = usize::try_from(pace.window / 2).unwrap_or(0);
                // As much as is free now.
                let less = self.flow.free.forget_permits(less);
                pace.window -= u32::try_from(less).unwrap_or(0);
            }
        }
    }
}

/// Measures rounds: the time in which two windows are delivered. The first of them still has the
/// pace of the round before.
#[derive(Debug)]
struct Pace {
    window: u32,
    delivered: u32,
    limited: bool,
    since: Instant,
    /// Units a second of the last round.
    rate: u64,
    /// Whether the window grew after that.
    grew: bool,
    rest_rounds: u32,
}

/// Change of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// Twice as much, within the limit.
    Grow,
    /// Half of it, if that is free.
    Shrink,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self {
            window: UNITS.0,
            delivered: 0,
            limited: false,
            since: now,
            rate: 0,
            grew: false,
            rest_rounds: 0,
        }
    }

    /// Counts what arrived.
    fn delivered(&mut self, units: u32, is_limit: bool, now: Instant) -> Change {
        self.delivered = self.delivered.saturating_add(units);
        self.limited |= is_limit;
        if self.delivered < 2 * self.window {
            return Change::None;
        }
        let took = now.duration_since(self.since).max(Duration::from_micros(1));
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let rate = u64::from(self.delivered).saturating_mul(1_000_000) / micros;
        (self.delivered, self.since) = (0, now);
        let limited = std::mem::take(&mut self.limited);
        if self.rest_rounds > 0 {
            self.rest_rounds -= 1;
            return Change::None;
        }
        let worth = self.rate.saturating_add(self.rate / 100 * MIN_GAIN_PERCENT);
        let before = std::mem::replace(&mut self.rate, rate);
        if std::mem::take(&mut self.grew) && rate < worth {
            self.rate = before;
            self.rest_rounds = RETRY_ROUNDS;
            return Change::Shrink;
        }
        if !limited || self.window >= UNITS.1 {
            return Change::None;
        }
        self.grew = true;
        Change::Grow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The windows of transfers over a path of `latency`, of `rate` units a second.
    fn windows(latency: Duration, rate: u32) -> Vec<u32> {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let deliver = |_| {
            let window = pace.window;
            // A window takes a round trip, or as long as the path needs for it.
            now += latency.max(Duration::from_secs(window.into()) / rate);
            match pace.delivered(window, true, now) {
                Change::None => {}
                Change::Grow => pace.window = (2 * window).min(UNITS.1),
                Change::Shrink => pace.window /= 2,
            }
            window
        };
        (0..1_000).map(deliver).collect()
    }

    #[test]
    fn a_slow_path_with_little_latency_keeps_a_small_window_but_for_a_try_now_and_then() {
        let windows = windows(Duration::from_micros(100), 50_000);
        let larger = windows.iter().filter(|window| **window > UNITS.0).count();
        assert!((1..100).contains(&larger), "{larger} of {}", windows.len());
    }

    #[test]
    fn a_path_with_much_latency_gets_the_largest_window() {
        let windows = windows(Duration::from_millis(500), 1_000_000);
        assert_eq!(windows.last(), Some(&UNITS.1));
    }

    #[test]
    fn a_window_that_is_not_the_limit_does_not_grow() {
        let mut pace = Pace::new(Instant::now());
        for _ in 0..100 {
            let change = pace.delivered(UNITS.0, false, Instant::now());
            assert_eq!(change, Change::None);
        }
    }

    #[tokio::test]
    async fn bytes_that_are_given_back_can_be_acquired_again() {
        let flow = Arc::new(Flow::new());
        let all = flow.acquire(UNITS.0 * UNIT_BYTES).await;
        let waiting = flow.acquire(1);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(all);
        waiting.await;
    }
}
