//! A session as another user: a process of its own, because credentials belong to processes.
//!
//! It is this program again, on one end of a pair of sockets; the agent copies between the other
//! end and the client. No other descriptor and no environment is inherited.

#![allow(unsafe_code, reason = "a system call between fork and exec")]

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
};

use nix::unistd::Pid;
use vsock_agent_protocol::sftp::SessionOptions;

use crate::system::{descriptors::close_on_exec_from, reaper};

/// This program, also if its file was replaced.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The sub-command of [`crate::serve_sftp_on_stdio`].
pub(crate) const SUB_COMMAND: &str = "sftp-server";

/// A process with a session. `Drop` kills it, and leaves it to the reaper: it may hang in the kernel, on
/// a file system that does not answer.
#[derive(Debug)]
pub(crate) struct UserSession(Child);

impl UserSession {
    /// Starts the process, and gives the socket to talk to it. Blocks until it runs.
    ///
    /// # Errors
    ///
    /// Errors of `socketpair(2)`, `fork(2)` and `execve(2)`.
    pub(crate) fn start(options: &SessionOptions) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let input = OwnedFd::from(theirs);
        let output = input.try_clone()?;
        let mut command = Command::new(THIS_PROGRAM);
        command.arg(SUB_COMMAND);
        if let Some(user) = &options.user {
            command.arg("--user").arg(user);
        }
        if let Some(root) = &options.root {
            command.arg("--root").arg(root);
        }
        if options.read_only {
            command.arg("--read-only");
        }
        command.env_clear().current_dir("/");
        command.stdin(input).stdout(output).stderr(Stdio::null());
        // SAFETY: makes system calls only, and closes nothing before `exec`.
        unsafe { command.pre_exec(|| Ok(close_on_exec_from(3)?)) };
        Ok((Self(command.spawn()?), ours))
    }
}

impl Drop for UserSession {
    fn drop(&mut self) {
        // It has ended, or has no client any more.
        let _ = self.0.kill();
        if let Ok(pid) = self.0.id().try_into() {
            reaper::reap(Pid::from_raw(pid));
        }
    }
}
