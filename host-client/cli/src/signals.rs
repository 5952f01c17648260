//! Signals to ourselves, received instead of their default action.

use std::{future::pending, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that ask for the end: Ctrl-C, `kill`, and the terminal that goes away.
pub(crate) const ENDING: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Some signals. Those that were ignored when the process started stay ignored, and never come: so
/// do `nohup` and a shell that starts something in the background keep them from a program.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Listens to these, by number, from now on.
    pub(crate) fn of(numbers: &[i32]) -> io::Result<Self> {
        Self::listen(&not_ignored(numbers))
    }

    /// Listens to these, also if they are ignored.
    pub(crate) fn listen(numbers: &[i32]) -> io::Result<Self> {
        let numbers = numbers.iter();
        numbers
            .map(|number| Ok((*number, signal(SignalKind::from_raw(*number))?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The number of the next signal. Safe to drop.
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

/// Those of some signals that are not ignored.
pub(crate) fn not_ignored(numbers: &[i32]) -> Vec<i32> {
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let heard = numbers.iter().copied();
    heard.filter(|number| !has(ignored, *number)).collect()
}

/// The set of ignored signals in a `status` file of a process (`proc_pid_status(5)`), one bit each.
fn ignored(status: &str) -> u64 {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.unwrap_or_default()
}

/// Whether a signal, from 1 on, is in a set.
fn has(set: u64, number: i32) -> bool {
    u32::try_from(number - 1).is_ok_and(|bit| set.checked_shr(bit).is_some_and(|set| set & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bit_is_the_first_signal() {
        let set = ignored("Name:\tcat\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n");
        assert!(has(set, libc::SIGHUP) && has(set, libc::SIGPIPE));
        assert!(!has(set, libc::SIGINT) && !has(set, 64) && !has(set, 65) && !has(set, 0));
        assert_eq!(ignored("Name:\tcat\n"), 0);
    }
}
