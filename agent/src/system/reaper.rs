//! Reaps killed children without blocking.
//!
//! A process that waits in the kernel for a file system that does not respond cannot be killed
//! (`TASK_UNINTERRUPTIBLE`), and waiting for it would block a thread or a task. So a task waits for its pidfd.
//! Its pid is not reused until it is reaped. `SIGCHLD` is not used: it would wake the agent at the end of each
//! command.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use tokio::{io::unix::AsyncFd, select, sync::Notify, task::JoinSet};

use crate::system::pidfd;

/// Children that are to be reaped and have no task yet.
static CHILDREN: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Notified when a child is added.
static MORE: Notify = Notify::const_new();

/// Reaps a child now if it has exited, or when it exits. Does not block. Nothing else may wait for the
/// child.
pub(crate) fn reap(child: Pid) {
    if is_alive(child) {
        children().push(child);
        MORE.notify_one();
    }
}

/// Reaps children as they exit. Never returns.
pub(crate) async fn watch() {
    let mut tasks = JoinSet::new();
    loop {
        let new = std::mem::take(&mut *children());
        for child in new.into_iter().map(Unreaped) {
            // Without a descriptor it stays on the list until another child is added or exits.
            if let Ok(pidfd) = pidfd::open(child.0)
                && let Ok(exited) = pidfd::watch(pidfd)
            {
                tasks.spawn(reap_at_exit(child, exited));
            }
        }
        select! {
            () = MORE.notified() => {}
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// A child that is back on the list if it is dropped before it has exited.
struct Unreaped(Pid);

impl Drop for Unreaped {
    fn drop(&mut self) {
        if is_alive(self.0) {
            children().push(self.0);
        }
    }
}

async fn reap_at_exit(child: Unreaped, exited: AsyncFd<OwnedFd>) {
    while is_alive(child.0) {
        match exited.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

fn children() -> MutexGuard<'static, Vec<Pid>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a child is running. Reaps it if not.
fn is_alive(child: Pid) -> bool {
    let status = waitpid(child, Some(WaitPidFlag::WNOHANG));
    matches!(status, Ok(WaitStatus::StillAlive))
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use nix::sys::signal::{Signal, kill};

    use super::*;

    #[tokio::test]
    async fn a_child_is_reaped_when_it_exits() {
        #[expect(clippy::zombie_processes, reason = "the reaper waits for it")]
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let ended = async {
            reap(pid);
            kill(pid, Signal::SIGKILL).unwrap();
            while kill(pid, None).is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        select! {
            () = watch() => {}
            () = ended => {}
        }
    }
}
