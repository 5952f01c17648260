//! A thread without root's rights, and whatever it starts.

#![allow(unsafe_code, reason = "the C library would change every thread's user")]

use std::thread;

use nix::{errno::Errno, libc};

use crate::own_process::in_own_process;

/// `nobody`, Debian's and most others'.
const NOBODY: libc::uid_t = 65534;

/// Runs `test`, in a process of its own, on a thread that is the user and group `nobody`, as are threads and processes that it
/// starts. Only root can.
///
/// # Panics
///
/// When `test` does, or when the thread cannot become `nobody`.
pub fn as_nobody(test: impl FnOnce() + Send + 'static) {
    let as_nobody = move || {
        let [groups, group, user] = [
            libc::SYS_setgroups,
            libc::SYS_setresgid,
            libc::SYS_setresuid,
        ];
        // SAFETY: takes numbers, and an empty list.
        Errno::result(unsafe { libc::syscall(groups, 0, std::ptr::null::<libc::gid_t>()) })
            .unwrap();
        for call in [group, user] {
            // SAFETY: takes numbers only, and changes this thread alone.
            Errno::result(unsafe { libc::syscall(call, NOBODY, NOBODY, NOBODY) }).unwrap();
        }
        test();
    };
    in_own_process(|| {
        if let Err(panic) = thread::spawn(as_nobody).join() {
            std::panic::resume_unwind(panic);
        }
    });
}
