//! Counts of what a client did, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a [`Client`](crate::Client) and its clones did since it was made: a snapshot by
/// [`Client::counters`](crate::Client::counters). Numbers only grow, but for
/// [`connections_open`](Self::connections_open).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Connections that were made, before TLS.
    pub connections: u64,
    /// Those that are open now.
    pub connections_open: u64,
    /// Calls of methods that need the agent. Requests of file sessions are not counted, and neither are calls
    /// whose future was dropped.
    pub calls: u64,
    /// Those that failed.
    pub failed_calls: u64,
    /// Commands that were started.
    pub commands: u64,
    /// Bytes received on all connections, with TLS as they are on the wire.
    pub bytes_received: u64,
    /// Bytes sent on all connections, with TLS as they are on the wire.
    pub bytes_sent: u64,
}

/// The counts behind [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct Tally {
    opened: AtomicU64,
    closed: AtomicU64,
    calls: AtomicU64,
    failed_calls: AtomicU64,
    commands: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Tally {
    pub(crate) fn opened(&self) {
        add(&self.opened, 1);
    }

    pub(crate) fn closed(&self) {
        add(&self.closed, 1);
    }

    pub(crate) fn called(&self, succeeded: bool) {
        add(&self.calls, 1);
        add(&self.failed_calls, (!succeeded).into());
    }

    pub(crate) fn command(&self) {
        add(&self.commands, 1);
    }

    pub(crate) fn received(&self, bytes: usize) {
        add(&self.received, u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.sent, u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let connections = get(&self.opened);
        Counters {
            connections,
            connections_open: connections.saturating_sub(get(&self.closed)),
            calls: get(&self.calls),
            failed_calls: get(&self.failed_calls),
            commands: get(&self.commands),
            bytes_received: get(&self.received),
            bytes_sent: get(&self.sent),
        }
    }
}

/// The numbers are independent of each other and of other memory.
fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}
