//! Closes all descriptors from a number on, now or at `exec`.

#![allow(unsafe_code, reason = "system calls on descriptors without an owner")]

use std::os::fd::RawFd;

use nix::errno::Errno;

/// Upper limit of descriptors without `close_range(2)` (before Linux 5.9): they are closed one by one. The
/// unit's `LimitNOFILE`.
const OLD_KERNEL_DESCRIPTORS: RawFd = 65_536;

/// Sets `FD_CLOEXEC` on all descriptors from `first` on, which must not be negative. Async-signal-safe.
///
/// # Errors
///
/// The errno of `close_range(2)`; none in practice.
pub(crate) fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: takes numbers only, and closes nothing.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flag) };
    match Errno::result(marked) {
        // Without the system call before Linux 5.9, without the flag before 5.11.
        Err(Errno::ENOSYS | Errno::EINVAL) => {
            for descriptor in first..OLD_KERNEL_DESCRIPTORS {
                // SAFETY: takes numbers only; `EBADF` for those that are not open.
                unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Closes all descriptors from `first` on, which must not be negative. Async-signal-safe.
///
/// # Errors
///
/// The errno of `close_range(2)`; none in practice.
///
/// # Safety
///
/// No owner of a closed descriptor may use it afterwards: call this in the child of a `fork`, or before
/// anything is opened.
pub(crate) unsafe fn close_all_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: takes numbers only; the caller guarantees that the descriptors have no owner.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    match Errno::result(closed) {
        Err(Errno::ENOSYS) => {
            for descriptor in first..OLD_KERNEL_DESCRIPTORS {
                // SAFETY: as above; `EBADF` for those that are not open.
                unsafe { libc::close(descriptor) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}
