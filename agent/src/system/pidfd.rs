//! Descriptors for processes (Linux 5.3, `pidfd_open(2)`).

#![allow(
    unsafe_code,
    reason = "a system call without a function in the C library"
)]

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
};

use nix::{errno::Errno, unistd::Pid};
use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor for a process. Of a child that is not reaped, the number is never that of another process.
///
/// # Errors
///
/// `ESRCH` if there is no such process; `EMFILE`, `ENFILE`, `ENOMEM`.
pub(crate) fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just created this descriptor; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Registers a pidfd with the runtime. It is readable when the process has exited.
///
/// # Errors
///
/// Errors of `epoll_ctl(2)`.
pub(crate) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}
