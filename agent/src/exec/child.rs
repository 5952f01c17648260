//! One process: started, waited for, sent signals.
//!
//! Everything is worked out before `fork`, because between `fork` and `exec` the child of a
//! threaded process may make system calls and nothing else (`signal-safety(7)`): no allocation, no
//! lock, no NSS. The order of the child's steps matters: groups before the user, the directory as
//! the user, signals while they are still blocked, descriptors last.
//!
//! A child that has ended is not reaped until its [`Child`] is dropped, so that its pid, which is
//! also its group and its session, cannot mean anybody else while it is still sent signals.

#![allow(unsafe_code, reason = "fork, and the system calls of the child")]

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, killpg, pthread_sigmask},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::{self, Pid, pipe2},
};
use tokio::io::{Interest, unix::AsyncFd};
use vsock_agent_protocol::exec::{
    EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_SIGNAL_BASE, MAX_SIGNAL,
};

use super::spec::{Directory, ExecSpec};

/// Soft limit on open files of a command: what login shells have. The agent raises its own.
const CHILD_OPEN_FILES: libc::rlim_t = 1024;

/// Creation mask of a command: the usual one of a login.
const CHILD_UMASK: libc::mode_t = 0o022;

/// A process the agent started. It leads its own session and process group. Reaped in `Drop`.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Readable when the process has ended.
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitStatus {
    Code(i32),
    Signal(i32),
}

impl ExitStatus {
    /// The number a shell would give.
    pub(super) const fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => EXIT_SIGNAL_BASE + signal,
        }
    }

    /// The signal, if it was one.
    pub(super) const fn signal(self) -> Option<i32> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(signal),
        }
    }
}

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// There is no such program, or no such interpreter of it.
    #[error("command not found: {program}")]
    NotFound { program: String, source: io::Error },
    /// It is there, and the user may not run it or it is no program.
    #[error("command not executable: {program}")]
    NotExecutable { program: String, source: io::Error },
    /// The directory to start in is not there, or closed to the user.
    #[error("cannot change to the directory {directory}")]
    Directory {
        directory: String,
        source: io::Error,
    },
    /// Arguments and environment are more than the kernel takes.
    #[error("the argument list is too long")]
    TooLong { source: io::Error },
    /// The kernel would not make the user out of us.
    #[error("cannot become the user {uid}")]
    Identity { uid: u32, source: io::Error },
    /// The system is out of something, or forbids it.
    #[error("cannot {step}")]
    System {
        step: &'static str,
        source: io::Error,
    },
}

impl StartError {
    /// The exit status a shell would give; 126 stands for all that is not 127.
    pub(crate) const fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => EXIT_NOT_FOUND,
            _ => EXIT_NOT_EXECUTABLE,
        }
    }

    /// A word a program can branch on.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::NotExecutable { .. } => "not-executable",
            Self::Directory { .. } => "bad-cwd",
            Self::TooLong { .. } => "too-long",
            Self::Identity { .. } => "identity",
            Self::System { .. } => "system",
        }
    }
}

/// The command's ends of its streams.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// What the child was doing when it failed, in the order of doing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Session = 1,
    Terminal,
    Streams,
    Signals,
    Identity,
    Directory,
    Descriptors,
    Execute,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Session,
        Self::Terminal,
        Self::Streams,
        Self::Signals,
        Self::Identity,
        Self::Directory,
        Self::Descriptors,
        Self::Execute,
    ];

    const fn describe(self) -> &'static str {
        match self {
            Self::Session => "start a session",
            Self::Terminal => "take the terminal",
            Self::Streams => "set up the streams",
            Self::Signals => "reset the signals",
            Self::Identity => "become the user",
            Self::Directory => "change the directory",
            Self::Descriptors => "close descriptors",
            Self::Execute => "execute",
        }
    }
}

/// Descriptors are marked one by one up to this one where the kernel cannot do it in one call. The
/// unit's `LimitNOFILE`.
const OLD_KERNEL_DESCRIPTORS: RawFd = 65_536;

/// At least as large as the kernel's `struct sigaction`, in 64-bit words
/// (`include/linux/signal_types.h`: handler, flags, restorer, mask).
const SIGACTION_WORDS: usize = 4;

/// Size of the kernel's signal set, in bytes: one bit for each of [`MAX_SIGNAL`].
const SIGNAL_SET_BYTES: usize = 8;

/// Size of a failure report: the step, and the errno in native order. Far below `PIPE_BUF`, so
/// that it is written whole or not at all.
const REPORT_BYTES: usize = 5;

impl Child {
    /// Starts the command. Blocks until its program runs or has failed to.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left behind then.
    pub(super) fn start(
        spec: &ExecSpec,
        stdio: Stdio,
        entrance: Option<OwnedFd>,
    ) -> Result<Self, StartError> {
        let system = |step| {
            move |errno: Errno| StartError::System {
                step,
                source: errno.into(),
            }
        };
        let plan = Plan::new(spec, &stdio, entrance.as_ref());
        let (report, report_in) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        let pid = fork(&plan, &report_in).map_err(system("fork"))?;
        drop(report_in);
        drop(stdio);
        if let Some((step, errno)) = read_report(&report) {
            // It has reported and is about to end; nobody else can reap it.
            let _ = waitpid(pid, None);
            return Err(spec.explain(step, errno));
        }
        let pidfd = pidfd_open(pid).map_err(system("watch the process"));
        let child = pidfd.and_then(|pidfd| {
            // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives.
            unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(|error| {
                StartError::System {
                    step: "watch the process",
                    source: error.into(),
                }
            })
        });
        match child {
            Ok(pidfd) => Ok(Self { pid, pidfd }),
            Err(error) => {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                Err(error)
            }
        }
    }

    /// Its pid, which is also its process group's and its session's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end, which stays to be seen: it is reaped in `Drop`.
    ///
    /// # Errors
    ///
    /// None in practice; what `waitid(2)` says.
    pub(super) async fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::Pid(self.pid), flags)? {
                WaitStatus::Exited(_, code) => return Ok(ExitStatus::Code(code)),
                WaitStatus::Signaled(_, signal, _) => return Ok(ExitStatus::Signal(signal as i32)),
                _ => ready.clear_ready(),
            }
        }
    }
}

impl Child {
    /// Gives the process up, running or not. It is reaped by whoever inherits it.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Child {
    /// Reaps the process. One that has not ended is killed first, with its group.
    fn drop(&mut self) {
        if matches!(
            waitpid(self.pid, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive)
        ) {
            let _ = killpg(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

impl ExecSpec {
    /// Makes an error of what the child reported.
    fn explain(&self, step: Option<Step>, errno: Errno) -> StartError {
        let source = errno.into();
        let program = || {
            self.argv
                .first()
                .map(|arg| arg.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        match (step, errno) {
            (Some(Step::Execute), Errno::ENOENT | Errno::ENOTDIR) => StartError::NotFound {
                program: program(),
                source,
            },
            (Some(Step::Execute), Errno::E2BIG) => StartError::TooLong { source },
            (
                Some(Step::Execute),
                Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE,
            ) => StartError::System {
                step: "execute",
                source,
            },
            (Some(Step::Execute), _) => StartError::NotExecutable {
                program: program(),
                source,
            },
            (Some(Step::Directory), _) => {
                let (Directory::Requested(path) | Directory::Home(path)) = &self.cwd;
                StartError::Directory {
                    directory: path.to_string_lossy().into_owned(),
                    source,
                }
            }
            (Some(Step::Identity), _) => StartError::Identity {
                uid: self.uid,
                source,
            },
            (Some(step), _) => StartError::System {
                step: step.describe(),
                source,
            },
            (None, _) => StartError::System {
                step: "start",
                source,
            },
        }
    }
}

/// Everything the child needs, as plain pointers and numbers that stay valid through `fork`.
struct Plan<'a> {
    candidates: &'a [CString],
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    cwd: &'a CStr,
    cwd_may_be_missing: bool,
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: &'a [libc::gid_t],
    streams: [RawFd; 3],
    terminal: bool,
    /// Writing `0` here moves the writer into its control group.
    entrance: Option<RawFd>,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a ExecSpec, stdio: &Stdio, entrance: Option<&OwnedFd>) -> Self {
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
            streams: [
                stdio.stdin.as_raw_fd(),
                stdio.stdout.as_raw_fd(),
                stdio.stderr.as_raw_fd(),
            ],
            terminal: spec.terminal.is_some(),
            entrance: entrance.map(AsRawFd::as_raw_fd),
        }
    }
}

/// Forks, and runs `plan` in the child.
fn fork(plan: &Plan<'_>, report: &OwnedFd) -> Result<Pid, Errno> {
    // A signal must not run the agent's handlers in the child: they write to the agent's pipes.
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    // SAFETY: the child makes system calls only, and never returns from `run`.
    let forked = unsafe { unistd::fork() };
    if let Ok(unistd::ForkResult::Child) = forked {
        // SAFETY: this is the child of a fork, and `plan` points at memory it has a copy of.
        unsafe { run(plan, report.as_raw_fd()) }
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    match forked? {
        unistd::ForkResult::Parent { child } => Ok(child),
        unistd::ForkResult::Child => Err(Errno::ECHILD),
    }
}

/// The child's life: set up, execute, or report and end.
///
/// # Safety
///
/// Only between `fork` and `exec`, and only system calls. `plan` must be readable.
unsafe fn run(plan: &Plan<'_>, report: RawFd) -> ! {
    let mut step = Step::Session;
    // SAFETY: the caller's promise is handed on.
    let errno = match unsafe { set_up(plan, &mut step) } {
        Ok(()) => {
            step = Step::Execute;
            // SAFETY: the pointers end with a null and live as long as `plan`.
            unsafe { execute(plan) }
        }
        Err(errno) => errno,
    };
    let mut message = [step as u8; REPORT_BYTES];
    message[1..].copy_from_slice(&(errno as i32).to_ne_bytes());
    // SAFETY: `message` is as long as it says. If it cannot be written there is nobody to tell.
    unsafe { libc::write(report, message.as_ptr().cast(), REPORT_BYTES) };
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(EXIT_NOT_FOUND) }
}

/// Everything before `exec`. `step` tells what failed.
///
/// # Safety
///
/// As [`run`].
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one system call a line, one reason"
)]
unsafe fn set_up(plan: &Plan<'_>, step: &mut Step) -> Result<(), Errno> {
    // SAFETY: plain system calls. The pointers are to `plan`, to locals, or null.
    unsafe {
        if let Some(entrance) = plan.entrance {
            // If it fails the session has to do, as it does where there are no groups.
            libc::write(entrance, c"0".as_ptr().cast(), 1);
        }
        Errno::result(libc::setsid())?;
        *step = Step::Terminal;
        if plan.terminal {
            Errno::result(libc::ioctl(plan.streams[0], libc::TIOCSCTTY, 0))?;
        }
        *step = Step::Streams;
        // The agent's own 0 to 2 are open, so none of the three can be in the way of another.
        for (target, source) in (0..).zip(plan.streams) {
            Errno::result(libc::dup2(source, target))?;
        }
        *step = Step::Signals;
        reset_signals()?;
        reset_limits();
        *step = Step::Identity;
        // The raw calls: the C library's tell every thread, and the child has none.
        let groups = plan.groups;
        Errno::result(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        Errno::result(libc::syscall(
            libc::SYS_setresgid,
            plan.gid,
            plan.gid,
            plan.gid,
        ))?;
        Errno::result(libc::syscall(
            libc::SYS_setresuid,
            plan.uid,
            plan.uid,
            plan.uid,
        ))?;
        *step = Step::Directory;
        if let Err(errno) = Errno::result(libc::chdir(plan.cwd.as_ptr())) {
            if !plan.cwd_may_be_missing {
                return Err(errno);
            }
            Errno::result(libc::chdir(c"/".as_ptr()))?;
        }
        *step = Step::Descriptors;
        mark_descriptors()?;
    }
    Ok(())
}

/// Marks every descriptor but the three streams to be closed by `exec`. Marked, not closed: the
/// report must stay open until then.
///
/// # Safety
///
/// As [`run`].
unsafe fn mark_descriptors() -> Result<(), Errno> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: takes numbers only.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flag) };
    match Errno::result(marked) {
        // Linux before 5.9, and before 5.11, where the flag is not known.
        Err(Errno::ENOSYS | Errno::EINVAL) => {
            for descriptor in 3..OLD_KERNEL_DESCRIPTORS {
                // SAFETY: takes numbers only; those that are not open refuse.
                unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Gives every signal its default action, then unblocks them all. What the agent ignores or
/// handles must not be inherited.
///
/// # Safety
///
/// As [`run`].
unsafe fn reset_signals() -> Result<(), Errno> {
    // All zero: the default action, no flags, an empty mask. The C library's call would refuse the
    // two signals it keeps for itself, and somebody may have ignored those too.
    let default = [0_u64; SIGACTION_WORDS];
    for signal in 1..=MAX_SIGNAL {
        // SAFETY: `default` is larger than the kernel's structure. KILL and STOP refuse.
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

/// Undoes what the agent set for itself: many open files, and protection from the kernel's
/// out-of-memory killer. Fails quietly: without it the command still runs.
///
/// # Safety
///
/// As [`run`].
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one system call a line, one reason"
)]
unsafe fn reset_limits() {
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

/// What the child reported, or `None` when its program runs.
fn read_report(report: &OwnedFd) -> Option<(Option<Step>, Errno)> {
    let mut message = [0; REPORT_BYTES];
    let length = loop {
        match unistd::read(report, &mut message) {
            Err(Errno::EINTR) => {}
            other => break other.unwrap_or(0),
        }
    };
    if length < REPORT_BYTES {
        return None;
    }
    let [step, errno @ ..] = message;
    let step = Step::ALL.into_iter().find(|known| *known as u8 == step);
    Some((step, Errno::from_raw(i32::from_ne_bytes(errno))))
}

/// Sends signal `number`, 1 to [`MAX_SIGNAL`], to the process group that `leader` leads. The leader
/// must not be reaped yet.
///
/// # Errors
///
/// What `kill(2)` says.
pub(super) fn signal_group(leader: Pid, number: i32) -> io::Result<()> {
    // nix has no real-time signals.
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::killpg(leader.as_raw(), number) })?;
    Ok(())
}

/// Sends `signal` to a process, by a descriptor, if it is `still` the one that was meant: a number
/// alone may have been given to another by now.
pub(super) fn signal_process(pid: Pid, signal: Signal, still: impl Fn(Pid) -> bool) {
    // If it has ended since, that is what was wanted.
    let Ok(pidfd) = pidfd_open(pid) else { return };
    if still(pid) {
        // SAFETY: takes numbers and a null.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                signal as i32,
                ptr::null_mut::<libc::siginfo_t>(),
                0,
            )
        };
        tracing::debug!(pid = pid.as_raw(), %signal, sent, "signal");
    }
}

/// A descriptor for a process (Linux 5.3, `pidfd_open(2)`).
fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers only.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let raw = RawFd::try_from(Errno::result(raw)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
