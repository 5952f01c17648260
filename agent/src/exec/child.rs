//! One process: started, waited for, sent signals.
//!
//! Everything is worked out before `fork`, because between `fork` and `exec` the child of a
//! threaded process may make system calls and nothing else (`signal-safety(7)`): no allocation, no
//! lock, no NSS. The order of the child's steps matters: signals while they are still blocked, groups
//! before the user, the directory as the user. Every descriptor that is not the command's is closed
//! before the first path is looked up: a path may lead to a file system that does not answer, and a
//! child that waits there must not keep other commands' pipes open.
//!
//! Starting has two halves. [`Child::fork`] makes the process, which takes no longer than the kernel
//! needs; [`Child::wait`] learns that its program runs, which a file system can delay for ever.
//!
//! A child that has ended is not reaped until its [`Child`] is dropped, so that its pid, which is
//! also its group and its session, cannot mean anybody else while it is still sent signals.

#![allow(unsafe_code, reason = "fork, and the system calls of the child")]

use std::{
    ffi::{CStr, CString},
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, pthread_sigmask},
    unistd::{self, Pid, pipe2},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};
use vsock_agent_protocol::exec::{
    EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_SIGNAL_BASE, MAX_SIGNAL,
};

use super::spec::{Directory, ExecSpec};
use crate::system::{descriptors::close_all_from, proc_stat::ProcStat, reaper};

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
    /// Brings what the child says when it cannot run its program, and ends when it can.
    report: pipe::Receiver,
    kill_on_drop: AtomicBool,
    spec: Arc<ExecSpec>,
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

/// Why a command has no exit status of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
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
    /// A signal ended its process before its program ran.
    #[error("killed by signal {0} before it ran")]
    Killed(i32),
    /// The agent ended it before its program ran.
    #[error("ended before it ran: {0}")]
    Ended(&'static str),
    /// Its program runs, was sent `SIGKILL`, and goes on: it waits in the kernel for a device or a
    /// file system (`TASK_UNINTERRUPTIBLE`).
    #[error("ended, because {0}, but its process cannot be killed while it waits in the kernel")]
    Unkillable(&'static str),
}

impl RunError {
    /// The exit status a shell would give; 126 stands for all that is neither 127 nor a signal.
    pub(crate) const fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => EXIT_NOT_FOUND,
            Self::Killed(signal) => EXIT_SIGNAL_BASE + *signal,
            Self::Ended(_) | Self::Unkillable(_) => EXIT_SIGNAL_BASE + libc::SIGKILL,
            _ => EXIT_NOT_EXECUTABLE,
        }
    }

    /// A word a program can branch on, for a command whose program never ran.
    pub(crate) const fn start_error(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotFound { .. } => "not-found",
            Self::NotExecutable { .. } => "not-executable",
            Self::Directory { .. } => "bad-cwd",
            Self::TooLong { .. } => "too-long",
            Self::Identity { .. } => "identity",
            Self::System { .. } => "system",
            Self::Killed(_) | Self::Ended(_) => "killed",
            Self::Unkillable(_) => return None,
        })
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

    const fn describe(self) -> &'static str {
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

/// The descriptor of the report in the child: the first one behind the streams.
const REPORT: RawFd = 3;

/// Set in a process's flags until it has executed a program (`PF_FORKNOEXEC`,
/// `include/linux/sched.h`).
const FORKED_WITHOUT_EXEC: u64 = 0x40;

/// At least as large as the kernel's `struct sigaction`, in 64-bit words
/// (`include/linux/signal_types.h`: handler, flags, restorer, mask).
const SIGACTION_WORDS: usize = 4;

/// Size of the kernel's signal set, in bytes: one bit for each of [`MAX_SIGNAL`].
const SIGNAL_SET_BYTES: usize = 8;

/// Size of a failure report: the step, and the errno in native order. Far below `PIPE_BUF`, so
/// that it is written whole or not at all.
const REPORT_BYTES: usize = 5;

impl Child {
    /// Makes the process. Blocks as long as `fork(2)` does, not until its program runs.
    ///
    /// # Errors
    ///
    /// [`RunError`]; nothing is left behind then.
    pub(super) fn fork(
        spec: Arc<ExecSpec>,
        stdio: Stdio,
        entrance: Option<OwnedFd>,
    ) -> Result<Self, RunError> {
        let system = |step| move |source| RunError::System { step, source };
        let (report, report_in) = pipe2(OFlag::O_CLOEXEC)
            .map_err(io::Error::from)
            .map_err(system("make a pipe"))?;
        let report = pipe::Receiver::from_owned_fd(report).map_err(system("watch a pipe"))?;
        let plan = Plan::new(&spec, &stdio, entrance.as_ref());
        let pid = fork(&plan, &report_in)
            .map_err(io::Error::from)
            .map_err(system("fork"))?;
        match watch(pid) {
            Ok(pidfd) => Ok(Self {
                pid,
                pidfd,
                report,
                kill_on_drop: AtomicBool::new(true),
                spec,
            }),
            Err(error) => {
                let _ = kill(pid, Signal::SIGKILL);
                reaper::reap(pid);
                Err(system("watch the process")(error))
            }
        }
    }

    /// Its pid, which is also its process group's and its session's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it does not wait in front of its program any more. The end of the report may come later:
    /// a child that was forked meanwhile has a copy until it runs.
    pub(super) fn is_started(&self) -> bool {
        !never_executed(self.pid)
    }

    /// Waits until its program runs, or its process has ended.
    ///
    /// # Errors
    ///
    /// Why the program does not run. It is told once.
    pub(super) async fn started(&self) -> Result<(), RunError> {
        let mut message = [0; REPORT_BYTES];
        let length = loop {
            let read = match self.report.readable().await {
                Ok(()) => self.report.try_read(&mut message),
                Err(error) => Err(error),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(source) => {
                    let step = "wait for its start";
                    return Err(RunError::System { step, source });
                }
                Ok(length) => break length,
            }
        };
        if length == REPORT_BYTES {
            let [step, errno @ ..] = message;
            let step = Step::ALL.into_iter().find(|known| *known as u8 == step);
            let errno = Errno::from_raw(i32::from_ne_bytes(errno));
            return Err(self.spec.explain(step, errno));
        }
        Ok(())
    }

    /// Waits for its end, which stays to be seen: it is reaped in `Drop`.
    ///
    /// # Errors
    ///
    /// Why its program never ran.
    pub(super) async fn wait(&self) -> Result<ExitStatus, RunError> {
        self.started().await?;
        let status = self.exit().await.map_err(|source| {
            let step = "wait for the command";
            RunError::System { step, source }
        })?;
        match status {
            ExitStatus::Signal(signal) if never_executed(self.pid) => Err(RunError::Killed(signal)),
            status => Ok(status),
        }
    }

    async fn exit(&self) -> io::Result<ExitStatus> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            match exit_of(self.pid)? {
                Some(status) => return Ok(status),
                None => ready.clear_ready(),
            }
        }
    }
}

impl Child {
    /// Gives the process up, running or not. It is reaped when it has ended.
    pub(super) fn leave(&self) {
        self.kill_on_drop.store(false, Ordering::Release);
    }
}

impl Drop for Child {
    /// Has the process reaped. One that has not ended is killed first, with its group.
    fn drop(&mut self) {
        if *self.kill_on_drop.get_mut() && matches!(exit_of(self.pid), Ok(None)) {
            let _ = killpg(self.pid, Signal::SIGKILL);
            // It may not lead a group yet.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        reaper::reap(self.pid);
    }
}

/// A descriptor for a process, readable when that has ended.
fn watch(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    let pidfd = pidfd_open(pid)?;
    // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}

/// How a process ended, if it has. It stays to be reaped.
fn exit_of(pid: Pid) -> io::Result<Option<ExitStatus>> {
    // nix knows neither the real-time signals nor the two below them that C libraries keep for
    // themselves, and fails for a process that one of them ended.
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let id = libc::id_t::try_from(pid.as_raw()).map_err(io::Error::other)?;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes the structure, or nothing.
    Errno::result(unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), flags) })?;
    // SAFETY: all zero is valid, and what the kernel writes too.
    let info = unsafe { info.assume_init() };
    // SAFETY: `waitid(2)` gives this field, or zero when there is nothing to tell.
    let ended = unsafe { info.si_pid() } != 0;
    // SAFETY: as above.
    let number = unsafe { info.si_status() };
    Ok(ended.then_some(match info.si_code {
        libc::CLD_EXITED => ExitStatus::Code(number),
        _ => ExitStatus::Signal(number),
    }))
}

/// Whether a process that is not reaped yet ended before it executed anything.
fn never_executed(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = ProcStat::parse(&stat).and_then(|stat| stat.number::<u64>(9));
    flags.is_some_and(|flags| flags & FORKED_WITHOUT_EXEC != 0)
}

impl ExecSpec {
    /// Makes an error of what the child reported.
    fn explain(&self, step: Option<Step>, errno: Errno) -> RunError {
        let source = errno.into();
        let program = || {
            self.argv
                .first()
                .map(|arg| arg.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        match (step, errno) {
            (Some(Step::Execute), Errno::ENOENT | Errno::ENOTDIR) => RunError::NotFound {
                program: program(),
                source,
            },
            (Some(Step::Execute), Errno::E2BIG) => RunError::TooLong { source },
            (
                Some(Step::Execute),
                Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE,
            ) => RunError::System {
                step: "execute",
                source,
            },
            (Some(Step::Execute), _) => RunError::NotExecutable {
                program: program(),
                source,
            },
            (Some(Step::Directory), _) => {
                let (Directory::Requested(path) | Directory::Home(path)) = &self.cwd;
                RunError::Directory {
                    directory: path.to_string_lossy().into_owned(),
                    source,
                }
            }
            (Some(Step::Identity), _) => RunError::Identity {
                uid: self.uid,
                source,
            },
            (Some(step), _) => RunError::System {
                step: step.describe(),
                source,
            },
            (None, _) => RunError::System {
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
    /// Whether the process is this user already.
    is_agents_own: bool,
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
            is_agents_own: spec.is_agents_own,
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
    // Cannot fail with these arguments, and a child that is there must not be forgotten.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
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
unsafe fn run(plan: &Plan<'_>, mut report: RawFd) -> ! {
    let mut step = Step::Session;
    // SAFETY: the caller's promise is handed on.
    let errno = match unsafe { set_up(plan, &mut report, &mut step) } {
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

/// Everything before `exec`. `step` tells what failed, `report` where to say so.
///
/// # Safety
///
/// As [`run`].
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one system call a line, one reason"
)]
unsafe fn set_up(plan: &Plan<'_>, report: &mut RawFd, step: &mut Step) -> Result<(), Errno> {
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
        *step = Step::Descriptors;
        if *report != REPORT {
            Errno::result(libc::dup3(*report, REPORT, libc::O_CLOEXEC))?;
            *report = REPORT;
        }
        close_all_from(REPORT + 1)?;
        *step = Step::Signals;
        reset_signals()?;
        reset_limits();
        *step = Step::Identity;
        if !plan.is_agents_own {
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

/// Takes on the groups, the group and the user.
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
    // The raw calls: the C library's tell every thread, and the child has none.
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

/// Sends signal `number`, 1 to [`MAX_SIGNAL`], to the process group that `leader` leads. The leader
/// must not be reaped yet.
///
/// # Errors
///
/// What `kill(2)` says.
pub(super) fn signal_group(leader: Pid, number: i32) -> io::Result<()> {
    // nix has no real-time signals.
    // SAFETY: takes numbers only.
    match Errno::result(unsafe { libc::killpg(leader.as_raw(), number) }) {
        // It has not got as far as to lead a group, and is alone.
        // SAFETY: takes numbers only.
        Err(Errno::ESRCH) => Errno::result(unsafe { libc::kill(leader.as_raw(), number) })?,
        other => other?,
    };
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

#[cfg(test)]
mod tests {
    use vsock_agent_protocol::exec::ExecRequest;

    use super::*;
    use crate::{exec::AgentUser, system::accounts::Accounts};

    #[tokio::test]
    async fn what_runs_has_started_before_that_is_waited_for() {
        let script = "echo up; exec sleep 1000";
        let request = ExecRequest {
            command: ["sh", "-c", script].map(str::to_owned).into(),
            ..ExecRequest::default()
        };
        let accounts = Accounts::read().unwrap();
        let agent = AgentUser::unless_root();
        let spec = ExecSpec::resolve(&request, &accounts, agent.as_ref()).unwrap();
        let (stdin, _input) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (output, stdout) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let stderr = stdout.try_clone().unwrap();
        let stdio = Stdio {
            stdin,
            stdout,
            stderr,
        };
        let child = Child::fork(Arc::new(spec), stdio, None).unwrap();
        assert_eq!(unistd::read(&output, &mut [0; 16]).unwrap(), 3);
        assert!(child.is_started());
    }
}
