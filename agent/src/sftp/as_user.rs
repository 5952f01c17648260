//! A session as another user: a process of its own, because rights belong to processes.
//!
//! It is this program again, on one end of a pair of sockets; the agent copies between the other
//! end and the client. Nothing is inherited but that socket: what the agent got from whoever started it
//! is not the user's.

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

/// The program that runs, whatever became of its file.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The sub-command of [`crate::serve_sftp_on_stdio`].
pub(crate) const SUB_COMMAND: &str = "sftp-server";

/// A process with a session. Killed in `Drop`, and reaped when it has ended: it may wait in the kernel for
/// a file system that does not answer.
#[derive(Debug)]
pub(crate) struct UserSession(Child);

impl UserSession {
    /// Starts the process, and gives the socket to talk to it. Blocks until it runs.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
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
        // It has ended, or has nobody to talk to any more.
        let _ = self.0.kill();
        if let Ok(pid) = self.0.id().try_into() {
            reaper::reap(Pid::from_raw(pid));
        }
    }
}
