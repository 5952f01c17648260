//! The end of a command as the agent reports it, for the readers of its output.
//!
//! A stream without its end marker is incomplete, unless the command was never started, or every byte
//! that the agent counted has arrived. Only the operation's result shows this.

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

/// The reported end, once it is known. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct ReportedEnd {
    end: Arc<OnceLock<End>>,
    known: CancellationToken,
}

#[derive(Debug)]
enum End {
    /// The command was not started, or was ended by the agent: its streams may end without a marker.
    Failed,
    /// It ended. The bytes of each stream, by its socket, if the agent counts them.
    Ran(BTreeMap<String, u64>),
}

impl ReportedEnd {
    /// Until the guard is dropped, the end may still be [set](Self::set).
    pub(super) fn pending(&self) -> DropGuard {
        self.known.clone().drop_guard()
    }

    /// Stores the end from the result of the operation.
    pub(super) fn set(&self, operation: &Operation) {
        let end = if operation.status_code == OperationStatus::Success.code() {
            let ended: Option<ExecEnded> = serde_json::from_value(operation.metadata.clone()).ok();
            End::Ran(ended.and_then(|ended| ended.bytes).unwrap_or_default())
        } else {
            End::Failed
        };
        // There is only one result.
        let _ = self.end.set(end);
    }

    /// Whether a stream without an end marker is complete with `received` bytes. Waits up to
    /// [`GRACE_TIMEOUT`] for the end.
    pub(super) async fn covers(&self, socket: &str, received: u64) -> bool {
        // Limited, because a command may go on after its streams were lost.
        let _ = timeout(GRACE_TIMEOUT, self.known.cancelled()).await;
        match self.end.get() {
            Some(End::Failed) => true,
            Some(End::Ran(bytes)) => bytes.get(socket) == Some(&received),
            None => false,
        }
    }
}
