//! Receives signals to this process in place of their default action.

use std::{future::pending, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a process to end: Ctrl-C, `kill`, and the hang-up of the terminal.
pub(crate) const TERMINATION: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// A set of signals that are received.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Receives these signals from now on. Signals that were ignored when the process started, as by
    /// `nohup` or a shell's background job, stay ignored.
    pub(crate) fn of(numbers: &[i32]) -> io::Result<Self> {
        Self::listen(&not_ignored(numbers))
    }

    /// Receives these signals from now on, also if they are ignored.
    pub(crate) fn listen(numbers: &[i32]) -> io::Result<Self> {
        let numbers = numbers.iter();
        numbers
            .map(|number| Ok((*number, signal(SignalKind::from_raw(*number))?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The number of the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> i32 {
        if self.0.is_empty() {
            return pending().await;
        }
        let waiting = self.0.iter_mut().map(|(number, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *number
            })
        });
        futures_util::future::select_all(waiting).await.0
    }
}

/// The signals of `numbers` that this process does not ignore.
pub(crate) fn not_ignored(numbers: &[i32]) -> Vec<i32> {
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let numbers = numbers.iter().copied();
    numbers.filter(|number| !has(ignored, *number)).collect()
}

/// The mask of ignored signals in `/proc/PID/status` (`proc_pid_status(5)`).
fn ignored(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default()
}

/// Whether a mask contains a signal. The first bit is signal 1.
fn has(set: u64, number: i32) -> bool {
    u32::try_from(number - 1).is_ok_and(|bit| set.checked_shr(bit).is_some_and(|set| set & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_starts_with_signal_1() {
        let set = ignored("Name:\tcat\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n");
        assert!(has(set, libc::SIGHUP) && has(set, libc::SIGPIPE));
        assert!(!has(set, libc::SIGINT) && !has(set, 64) && !has(set, 65) && !has(set, 0));
        assert_eq!(ignored("Name:\tcat\n"), 0);
    }
}
