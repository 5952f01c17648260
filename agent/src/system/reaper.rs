//! Reaps killed children without blocking.
//!
//! A process that waits in the kernel for a file system that does not respond cannot be killed
//! (`TASK_UNINTERRUPTIBLE`), and waiting for it would block a thread or a task. So all children on the list
//! are checked at each `SIGCHLD`. Their pids are not reused until they are reaped.

use std::sync::{Mutex, PoisonError};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

/// The children that were running at the last check.
static CHILDREN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Reaps a child now if it has exited, or when it exits. Does not block. Nothing else may wait for the
/// child.
pub(crate) fn reap(child: Pid) {
    if is_alive(child) {
        let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
        children.push(child);
    }
    // It may have exited before it was on the list.
    reap_ended();
}

/// Reaps children as they exit. Returns only if `SIGCHLD` cannot be caught.
pub(crate) async fn watch() {
    let mut child_ended = match signal(SignalKind::child()) {
        Ok(child_ended) => child_ended,
        Err(error) => {
            tracing::error!(%error, "cannot catch SIGCHLD: zombies are reaped only when another child is killed");
            return;
        }
    };
    while child_ended.recv().await.is_some() {
        reap_ended();
    }
}

fn reap_ended() {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain(|child| is_alive(*child));
}

/// Whether a child is running. Reaps it if not.
fn is_alive(child: Pid) -> bool {
    let status = waitpid(child, Some(WaitPidFlag::WNOHANG));
    matches!(status, Ok(WaitStatus::StillAlive))
}
