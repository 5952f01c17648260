//! Processes of the agent that nobody waits for any more: killed, but perhaps not ended.
//!
//! A process that waits in the kernel for a file system that does not answer cannot be killed
//! (`TASK_UNINTERRUPTIBLE`), and waiting for it would take a thread or a task for as long. They are
//! looked at whenever another one comes; until then they are zombies, and their pids nobody else's.

use std::sync::{Mutex, PoisonError};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

/// Those that had not ended when they were looked at.
static WAITED_FOR: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Reaps a child that has ended or was killed, at once or later, and never blocks. Nobody else may
/// wait for it.
pub(crate) fn reap(child: Pid) {
    let mut children = WAITED_FOR.lock().unwrap_or_else(PoisonError::into_inner);
    children.push(child);
    children.retain(|child| {
        let status = waitpid(*child, Some(WaitPidFlag::WNOHANG));
        matches!(status, Ok(WaitStatus::StillAlive))
    });
}
