//! The memory for requests that wait, in all sessions together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::defaults;

/// Bytes of requests that wait, in all sessions.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicUsize);

/// Bytes of a budget. Dropping it gives them back.
#[derive(Debug)]
pub(super) struct Reserved {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Takes bytes, also of a spent budget.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Reserved {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Reserved {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// Whether more than [`defaults::MAX_SFTP_WAITING_BYTES`] are taken.
    pub(super) fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) > defaults::MAX_SFTP_WAITING_BYTES
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
