//! Closing every descriptor from one on, now or with `exec`.

#![allow(
    unsafe_code,
    reason = "system calls on numbers, which Rust has no owner for"
)]

use std::os::fd::RawFd;

use nix::errno::Errno;

/// Descriptors are closed one by one up to this one where the kernel cannot do it in one call
/// (before Linux 5.9). The unit's `LimitNOFILE`.
const OLD_KERNEL_DESCRIPTORS: RawFd = 65_536;

/// Has `exec` close every descriptor from `first` on, which must not be negative. Makes system calls
/// only, so that it can be used between `fork` and `exec`.
///
/// # Errors
///
/// The errno of `close_range(2)`; none in practice.
pub(crate) fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: takes numbers only, and closes nothing by itself.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flag) };
    match Errno::result(marked) {
        // Before Linux 5.9, and before 5.11, where the flag is not known.
        Err(Errno::ENOSYS | Errno::EINVAL) => {
            for descriptor in first..OLD_KERNEL_DESCRIPTORS {
                // SAFETY: takes numbers only; those that are not open refuse.
                unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Closes every descriptor from `first` on, which must not be negative. Makes system calls only, so
/// that it can be used between `fork` and `exec`.
///
/// # Errors
///
/// The errno of `close_range(2)`; none in practice.
///
/// # Safety
///
/// Nobody may use a descriptor that is closed here: this is the child of a `fork`, or a process in
/// which nothing was opened yet.
pub(crate) unsafe fn close_all_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: takes numbers only; the caller guarantees that the descriptors have no owner.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    match Errno::result(closed) {
        Err(Errno::ENOSYS) => {
            for descriptor in first..OLD_KERNEL_DESCRIPTORS {
                // SAFETY: as above; those that are not open refuse.
                unsafe { libc::close(descriptor) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}
