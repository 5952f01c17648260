//! Signals that ask for the end, for commands that have something to tidy up before.

use std::{fs, io};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, `kill`, and the terminal that goes away. One that was ignored when we were started stays
/// so (`nohup`).
#[derive(Debug)]
pub(crate) struct Endings(Vec<(SignalKind, Signal)>);

impl Endings {
    /// Takes the signals; they end the process no longer.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let heard = |kind: &SignalKind| ignored >> (kind.as_raw_value() - 1) & 1 == 0;
        let listen = |kind| Ok((kind, signal(kind)?));
        let signals: io::Result<_> = kinds.into_iter().filter(heard).map(listen).collect();
        signals.map(Self)
    }

    /// The number of the next one.
    pub(crate) async fn recv(&mut self) -> i32 {
        let mut next: FuturesUnordered<_> = self
            .0
            .iter_mut()
            .map(async |(kind, signal)| signal.recv().await.map(|()| kind.as_raw_value()))
            .collect();
        match next.next().await {
            Some(Some(number)) => number,
            // All are ignored.
            _ => std::future::pending().await,
        }
    }
}

/// The signals that are ignored, as bits (`proc_pid_status(5)`).
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0)
}
