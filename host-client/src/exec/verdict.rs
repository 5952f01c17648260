//! What the agent says of a command's end, for the readers of its output.
//!
//! A stream that breaks off is a loss, unless the command was never started, or every byte that the
//! agent counted has arrived. Only the operation's result says so.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::GRACE_TIMEOUT;
use crate::protocol::{
    exec::ExecEnded,
    operation::{Operation, OperationStatus},
};

/// What is known of the end, and later will be. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict {
    end: Arc<OnceLock<End>>,
    known: CancellationToken,
}

#[derive(Debug)]
enum End {
    /// The command was not started, or the agent ended it: its streams end as they may.
    Failed,
    /// It ended. The bytes of each stream, by its socket, where the agent counts.
    Ran(BTreeMap<String, u64>),
}

impl Verdict {
    /// The end is known, or never will be, when what is returned is dropped.
    pub(super) fn pending(&self) -> DropGuard {
        self.known.clone().drop_guard()
    }

    /// Tells the end.
    pub(super) fn tell(&self, operation: &Operation) {
        let end = if operation.status_code == OperationStatus::Success.code() {
            let ended: Option<ExecEnded> = serde_json::from_value(operation.metadata.clone()).ok();
            End::Ran(ended.and_then(|ended| ended.bytes).unwrap_or_default())
        } else {
            End::Failed
        };
        // The first word counts; there is no second one.
        let _ = self.end.set(end);
    }

    /// Whether a stream that broke off after `received` bytes is complete all the same. Waits for
    /// the end to be known, but not for ever.
    pub(super) async fn excuses(&self, socket: &str, received: u64) -> bool {
        // A command may go on without its streams; who reads them is told of the loss soon.
        let _ = timeout(GRACE_TIMEOUT, self.known.cancelled()).await;
        match self.end.get() {
            Some(End::Failed) => true,
            Some(End::Ran(bytes)) => bytes.get(socket) == Some(&received),
            None => false,
        }
    }
}
