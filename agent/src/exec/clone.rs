//! `clone3(2)`: creates a process that runs a function of the agent until it calls `exec`.
//!
//! With [`Memory::Shared`] the process uses the agent's memory until then, as after `vfork(2)`, and the
//! calling thread waits. Creating it takes 35 µs. With a copy the time grows with the memory of the
//! agent: 125 µs at 5 MB, and as much again for the page faults that follow.

#![allow(unsafe_code, reason = "a system call that returns twice")]

use std::{
    ffi::c_void,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{errno::Errno, unistd::Pid};

/// `include/uapi/linux/sched.h`. The C library's constants of these are cut to 32 bits.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;

/// `SIGCHLD`, sent to the agent when the process exits.
const EXIT_SIGNAL: u64 = 17;

/// Size of `struct clone_args` with `cgroup` (`CLONE_ARGS_SIZE_VER2`, Linux 5.7).
const ARGUMENTS_BYTES: usize = size_of::<Arguments>();

/// The memory of a new process until it calls `exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// The agent's. [`clone`] returns when the process has called `exec` or has exited.
    Shared,
    /// A copy. [`clone`] returns at once.
    Copied,
}

/// The numbers of a process, which the kernel writes before the process runs. All threads can read them
/// while the one that created the process waits.
#[derive(Debug)]
pub(super) struct Numbers {
    /// 0 if there is no process.
    pid: AtomicI32,
    /// −1 if there is none, or it was taken.
    pidfd: AtomicI32,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            pid: AtomicI32::new(0),
            pidfd: AtomicI32::new(-1),
        }
    }
}

impl Numbers {
    /// The process and its pidfd, once there is one. Only the first call returns them.
    pub(super) fn take(&self) -> Option<(Pid, OwnedFd)> {
        // Before it fails, the kernel may write a descriptor and close it, but it writes no pid then.
        let pid = Some(self.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)?;
        let raw = Some(self.pidfd.swap(-1, Ordering::AcqRel)).filter(|&raw| raw >= 0)?;
        // SAFETY: the kernel has opened this descriptor for this process; no other call has returned it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
        Some((Pid::from_raw(pid), pidfd))
    }
}

/// `struct clone_args` (`include/uapi/linux/sched.h`).
#[derive(Debug, Default)]
#[repr(C, align(8))]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Creates a process that runs `entry` with `argument`, in the control group whose directory `cgroup` is.
/// Signals that are not ignored have their default action in it. Its numbers are in `numbers`.
///
/// # Errors
///
/// The errno of `clone3(2)`: `ENOSYS` before Linux 5.3 or on an unknown processor, `E2BIG` or `EINVAL` before
/// 5.7, others if the control group takes no process.
///
/// # Safety
///
/// `entry` must be sound with `argument` in a process that has this thread only, as between `fork` and
/// `exec` of a threaded process. With [`Memory::Shared`], all signals must be blocked, and `entry` may change
/// only what the agent expects to change, and must not change the user or the group.
pub(super) unsafe fn clone(
    memory: Memory,
    cgroup: Option<BorrowedFd<'_>>,
    numbers: &Numbers,
    entry: unsafe extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> Result<(), Errno> {
    let mut arguments = Arguments {
        flags: CLONE_CLEAR_SIGHAND | CLONE_PIDFD | CLONE_PARENT_SETTID,
        pidfd: numbers.pidfd.as_ptr() as u64,
        parent_tid: numbers.pid.as_ptr() as u64,
        exit_signal: EXIT_SIGNAL,
        ..Arguments::default()
    };
    if memory == Memory::Shared {
        arguments.flags |= CLONE_VM | CLONE_VFORK;
    }
    if let Some(cgroup) = cgroup.and_then(|cgroup| u64::try_from(cgroup.as_raw_fd()).ok()) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup;
    }
    // SAFETY: the kernel reads `arguments` and writes two numbers; for the rest as required of the caller.
    let result = unsafe { clone3(&arguments, entry, argument) };
    match i32::try_from(-result) {
        Ok(errno) if errno > 0 => Err(Errno::from_raw(errno)),
        _ => Ok(()),
    }
}

/// The system call. The new process calls `entry` and never returns from here. Returns the pid, or a negative
/// errno.
///
/// The new process uses the stack below this function's frame. If it shares the memory, this thread waits
/// meanwhile, so neither that part of the stack nor the thread's `errno` is used by both.
///
/// # Safety
///
/// As [`clone`].
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    arguments: &Arguments,
    entry: unsafe extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> i64 {
    let result;
    // SAFETY: the system call changes these registers only (`syscall(2)`). The branch for the new process does
    // not leave the block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "and rsp, -16",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            inout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") ARGUMENTS_BYTES,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// As on x86-64.
///
/// # Safety
///
/// As [`clone`].
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    arguments: &Arguments,
    entry: unsafe extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> i64 {
    let result;
    // SAFETY: the system call changes `x0` only (`syscall(2)`). The branch for the new process does not leave
    // the block.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            in("x8") libc::SYS_clone3,
            inout("x0") arguments => result,
            in("x1") ARGUMENTS_BYTES,
        );
    }
    result
}

/// Other processors: `fork(2)` is used instead.
///
/// # Safety
///
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(
    _: &Arguments,
    _: unsafe extern "C" fn(*const c_void) -> !,
    _: *const c_void,
) -> i64 {
    -i64::from(libc::ENOSYS)
}
