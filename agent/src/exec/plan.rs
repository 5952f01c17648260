//! What a new process does until it calls `exec`.
//!
//! All preparation happens before, because the child of a threaded process may only make
//! async-signal-safe calls (`signal-safety(7)`): no allocation, no lock, no NSS. The order of the steps
//! matters: signals while they are still blocked, groups before the user, the working directory as the
//! user. Descriptors that are not the command's are closed before the first path look-up: a path may be
//! on a file system that does not respond, and a child that waits there must not keep other commands'
//! pipes open.

#![allow(unsafe_code, reason = "the system calls of the child")]

use std::{
    ffi::{CStr, CString, c_void},
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::FileExt as _,
    },
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::errno::Errno;
use vsock_agent_protocol::exec::{EXIT_NOT_FOUND, MAX_SIGNAL};

use super::{
    child::Stdio,
    spec::{Directory, ExecSpec},
};
use crate::system::descriptors::close_all_from;

/// Soft limit on open files of a command: what login shells have. The agent raises its own.
const CHILD_OPEN_FILES: libc::rlim_t = 1024;

/// Creation mask of a command: the usual one of a login.
const CHILD_UMASK: libc::mode_t = 0o022;

/// The steps of the child between `fork` and `exec`, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Session = 1,
    Terminal,
    Streams,
    Descriptors,
    Signals,
    Identity,
    Directory,
    Execute,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Session,
        Self::Terminal,
        Self::Streams,
        Self::Descriptors,
        Self::Signals,
        Self::Identity,
        Self::Directory,
        Self::Execute,
    ];

    /// As in "cannot …".
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Session => "start a session",
            Self::Terminal => "take the terminal",
            Self::Streams => "set up the streams",
            Self::Descriptors => "close descriptors",
            Self::Signals => "reset the signals",
            Self::Identity => "become the user",
            Self::Directory => "change the directory",
            Self::Execute => "execute",
        }
    }
}

/// The descriptor of the report in the child: the first one after the streams.
const REPORT: RawFd = 3;

/// At least as large as the kernel's `struct sigaction`, in 64-bit words
/// (`include/linux/signal_types.h`: handler, flags, restorer, mask).
const SIGACTION_WORDS: usize = 4;

/// Size of the kernel's signal set, in bytes: one bit for each of [`MAX_SIGNAL`].
const SIGNAL_SET_BYTES: usize = 8;

/// Why a child did not execute its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    /// The step that failed.
    pub(super) step: Option<Step>,
    pub(super) errno: Errno,
}

impl Failure {
    /// As one number, which is not 0.
    const fn number(step: Step, errno: Errno) -> u64 {
        (step as u64) << 32 | errno as u64
    }

    /// The failure with this number, unless it is 0.
    pub(super) fn of(number: u64) -> Option<Self> {
        let [step, errno] = [number >> 32, number & u64::from(u32::MAX)];
        let step = |known: &Step| *known as u64 == step;
        (number != 0).then(|| Self {
            step: Step::ALL.into_iter().find(step),
            errno: Errno::from_raw(i32::try_from(errno).unwrap_or_default()),
        })
    }
}

/// Where a child writes the number of its [`Failure`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Report<'a> {
    /// A pipe, which `exec` closes. A number is shorter than `PIPE_BUF`, so the write is atomic.
    Pipe(RawFd),
    /// The agent's memory, which the child shares.
    Memory(&'a SharedMemory),
}

/// What a child that shares the agent's memory reads and writes there.
#[derive(Debug, Default)]
pub(super) struct SharedMemory {
    /// The number of a [`Failure`], or 0.
    pub(super) failure: AtomicU64,
    /// The child must exit.
    pub(super) is_abandoned: AtomicBool,
}

/// What the child needs, as pointers and numbers that stay valid in it.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    candidates: &'a [CString],
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    cwd: &'a CStr,
    cwd_may_be_missing: bool,
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: &'a [libc::gid_t],
    /// Whether the agent runs as this user already.
    is_agent_user: bool,
    streams: [RawFd; 3],
    terminal: bool,
    /// The agent's own out-of-memory score is not 0.
    resets_oom_score: bool,
    report: Report<'a>,
    /// Signals to set to their default action: bit `n` is signal `n + 1`.
    reset_signals: u64,
    /// Writing `0` here moves the writer into its control group.
    cgroup_procs: Option<RawFd>,
}

impl<'a> Plan<'a> {
    /// For a child whose control group is set and whose signals have no handlers.
    pub(super) fn new(spec: &'a ExecSpec, stdio: &Stdio, report: Report<'a>) -> Self {
        let pointers = |strings: &'a [CString]| -> Vec<*const libc::c_char> {
            strings
                .iter()
                .map(|string| string.as_ptr())
                .chain([ptr::null()])
                .collect()
        };
        let (cwd, cwd_may_be_missing) = match &spec.cwd {
            Directory::Requested(path) => (path, false),
            Directory::Home(path) => (path, true),
        };
        Self {
            candidates: &spec.candidates,
            argv: pointers(&spec.argv),
            envp: pointers(&spec.envp),
            cwd,
            cwd_may_be_missing,
            uid: spec.uid,
            gid: spec.gid,
            groups: &spec.groups,
            is_agent_user: spec.is_agent_user,
            streams: [
                stdio.stdin.as_raw_fd(),
                stdio.stdout.as_raw_fd(),
                stdio.stderr.as_raw_fd(),
            ],
            terminal: spec.terminal.is_some(),
            resets_oom_score: has_oom_score(),
            report,
            reset_signals: ignored_signals(),
            cgroup_procs: None,
        }
    }

    /// For a child of `fork(2)`, which has the agent's control group and signal handlers. `cgroup_procs` is the
    /// file of that name of its control group.
    pub(super) fn for_fork(self, cgroup_procs: Option<&OwnedFd>) -> Self {
        Self {
            reset_signals: u64::MAX,
            cgroup_procs: cgroup_procs.map(AsRawFd::as_raw_fd),
            ..self
        }
    }
}

/// The signals that the agent ignores, as in [`Plan::reset_signals`]. They are the same from its start on.
fn ignored_signals() -> u64 {
    static IGNORED: OnceLock<u64> = OnceLock::new();
    let ignored = |signal: &i32| {
        let mut action = [0_u64; SIGACTION_WORDS];
        // SAFETY: `action` is larger than the kernel's structure.
        let read = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                *signal,
                ptr::null::<u64>(),
                action.as_mut_ptr(),
                SIGNAL_SET_BYTES,
            )
        };
        // The handler is the first field.
        read == 0 && usize::try_from(action[0]) == Ok(libc::SIG_IGN)
    };
    *IGNORED.get_or_init(|| {
        let ignored = (1..=MAX_SIGNAL).filter(ignored);
        ignored.fold(0, |all, signal| all | signal_bit(signal))
    })
}

const fn signal_bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Whether the agent's own out-of-memory score is not 0, or unknown. An administrator may change it.
fn has_oom_score() -> bool {
    static FILE: OnceLock<io::Result<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| File::open("/proc/self/oom_score_adj"));
    let mut text = [0; 2];
    let read = file.as_ref().map(|file| file.read_at(&mut text, 0));
    !(matches!(read, Ok(Ok(_))) && &text == b"0\n")
}

/// Runs in the child: prepares and executes, or reports an error and exits.
///
/// # Safety
///
/// `plan` must point to a [`Plan`]. Only in a new process until `exec`, as it makes system calls only. If it
/// shares the agent's memory, all else that it changes is its stack and the thread's `errno`.
pub(super) unsafe extern "C" fn run(plan: *const c_void) -> ! {
    // SAFETY: as required of the caller.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let mut report = plan.report;
    if let Report::Memory(shared) = report
        && shared.is_abandoned.load(Ordering::SeqCst)
    {
        // SAFETY: as at the end.
        unsafe { libc::_exit(EXIT_NOT_FOUND) }
    }
    let mut step = Step::Session;
    // SAFETY: as required of the caller.
    let errno = match unsafe { set_up(plan, &mut report, &mut step) } {
        Ok(()) => {
            step = Step::Execute;
            // SAFETY: the pointers end with a null and live as long as `plan`.
            unsafe { execute(plan) }
        }
        Err(errno) => errno,
    };
    let number = Failure::number(step, errno);
    match report {
        Report::Memory(shared) => shared.failure.store(number, Ordering::Release),
        Report::Pipe(pipe) => {
            let message = number.to_ne_bytes();
            // SAFETY: `message` is as long as it says. A failure cannot be reported.
            unsafe { libc::write(pipe, message.as_ptr().cast(), message.len()) };
        }
    }
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(EXIT_NOT_FOUND) }
}

/// All steps before `exec`. `step` is the current step; `report` is where errors are written.
///
/// # Safety
///
/// As [`run`].
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one system call a line, one reason"
)]
unsafe fn set_up(plan: &Plan<'_>, report: &mut Report<'_>, step: &mut Step) -> Result<(), Errno> {
    // SAFETY: plain system calls. The pointers are to `plan`, to locals, or null.
    unsafe {
        if let Some(cgroup_procs) = plan.cgroup_procs {
            // Without a control group, the session identifies the processes.
            libc::write(cgroup_procs, c"0".as_ptr().cast(), 1);
        }
        Errno::result(libc::setsid())?;
        *step = Step::Terminal;
        if plan.terminal {
            Errno::result(libc::ioctl(plan.streams[0], libc::TIOCSCTTY, 0))?;
        }
        *step = Step::Streams;
        // The agent's own 0 to 2 are open, so none of the sources is one of the targets.
        for (target, source) in (0..).zip(plan.streams) {
            Errno::result(libc::dup2(source, target))?;
        }
        *step = Step::Descriptors;
        let mut first_unused = REPORT;
        if let Report::Pipe(pipe) = report {
            if *pipe != REPORT {
                Errno::result(libc::dup3(*pipe, REPORT, libc::O_CLOEXEC))?;
                *pipe = REPORT;
            }
            first_unused += 1;
        }
        close_all_from(first_unused)?;
        *step = Step::Signals;
        reset_signals(plan.reset_signals)?;
        reset_limits(plan.resets_oom_score);
        *step = Step::Identity;
        if !plan.is_agent_user {
            become_user(plan)?;
        }
        *step = Step::Directory;
        if let Err(errno) = Errno::result(libc::chdir(plan.cwd.as_ptr())) {
            if !plan.cwd_may_be_missing {
                return Err(errno);
            }
            Errno::result(libc::chdir(c"/".as_ptr()))?;
        }
    }
    Ok(())
}

/// Sets the supplementary groups, the group and the user.
///
/// # Safety
///
/// As [`run`].
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one system call a line, one reason"
)]
unsafe fn become_user(plan: &Plan<'_>) -> Result<(), Errno> {
    let Plan {
        uid, gid, groups, ..
    } = *plan;
    // Raw system calls: the C library's functions signal the other threads, and the child has none.
    // SAFETY: plain system calls, and `groups` is as long as it says.
    unsafe {
        Errno::result(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Resets `signals` to their default action and unblocks all. The agent's settings must not be inherited.
///
/// # Safety
///
/// As [`run`].
unsafe fn reset_signals(signals: u64) -> Result<(), Errno> {
    // All zero: the default action, no flags, an empty mask. The C library's function rejects the two
    // signals it reserves, which may be ignored too.
    let default = [0_u64; SIGACTION_WORDS];
    for signal in (1..=MAX_SIGNAL).filter(|&signal| signals & signal_bit(signal) != 0) {
        // SAFETY: `default` is larger than the kernel's structure. Fails for KILL and STOP.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                SIGNAL_SET_BYTES,
            )
        };
    }
    let mut none = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: an all-zero set is what `sigemptyset` makes of it, and it is written before use.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: `none` was initialised above.
    Errno::result(unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) })
        .map(drop)
}

/// Resets the agent's own limit on open files and, if `oom_score`, its out-of-memory score. Errors are
/// ignored: the command can run without.
///
/// In a child that shares the agent's memory, the score is the child's alone: the kernel sets it for all
/// processes with the memory, but not by one whose parent waits as after `vfork(2)` (`__set_oom_adj` in
/// `fs/proc/base.c`).
///
/// # Safety
///
/// As [`run`].
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one system call a line, one reason"
)]
unsafe fn reset_limits(oom_score: bool) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: plain system calls on locals and literals.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = CHILD_OPEN_FILES.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
        libc::umask(CHILD_UMASK);
        if !oom_score {
            return;
        }
        let file = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
}

/// Tries each candidate as `execvp(3)` does. Returns only if none works, with the errno that says
/// most.
///
/// # Safety
///
/// As [`run`]; `argv` and `envp` must end with a null.
unsafe fn execute(plan: &Plan<'_>) -> Errno {
    let mut denied = None;
    let mut errno = Errno::ENOENT;
    for path in plan.candidates {
        // SAFETY: as promised by the caller.
        unsafe { libc::execve(path.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
        errno = Errno::last();
        match errno {
            Errno::EACCES => denied = Some(errno),
            Errno::ENOENT | Errno::ENOTDIR => {}
            _ => return errno,
        }
    }
    denied.unwrap_or(errno)
}
