//! Reaps killed children that may not have ended yet.
//!
//! A process that waits in the kernel for a file system that does not answer cannot be killed
//! (`TASK_UNINTERRUPTIBLE`), and waiting for it would block a thread or a task. All of them are checked
//! whenever a child ends; until then their pids are not reused.

use std::sync::{Mutex, PoisonError};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

/// The children that had not ended at the last check.
static WAITED_FOR: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Reaps a child that has ended or was killed, now or later. Does not block. Nothing else may wait for
/// the child.
pub(crate) fn reap(child: Pid) {
    if is_alive(child) {
        let mut children = WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
        children.push(child);
    }
    // It may have ended before it was on the list.
    reap_ended();
}

/// Reaps children as they end. Never returns.
pub(crate) async fn watch() {
    let mut child_ended = match signal(SignalKind::child()) {
        Ok(child_ended) => child_ended,
        Err(error) => {
            tracing::error!(%error, "cannot catch SIGCHLD: children that have ended stay until others come");
            return;
        }
    };
    while child_ended.recv().await.is_some() {
        reap_ended();
    }
}

fn reap_ended() {
    let mut children = WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|child| is_alive(*child));
}

/// Whether a child has not ended; one that has is reaped.
fn is_alive(child: Pid) -> bool {
    let status = waitpid(child, Some(WaitPidFlag::WNOHANG));
    matches!(status, Ok(WaitStatus::StillAlive))
}
