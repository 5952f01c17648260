//! One process: fork, exec, wait, signals.
//!
//! All preparation happens before `fork`, because between `fork` and `exec` the child of a threaded
//! process may only make async-signal-safe calls (`signal-safety(7)`): no allocation, no lock, no NSS.
//! The order of the child's steps matters: signals while they are still blocked, groups before the
//! user, the working directory as the user. Descriptors that are not the command's are closed before
//! the first path look-up: a path may be on a file system that does not respond, and a child that waits
//! there must not keep other commands' pipes open.
//!
//! Starting has two steps. [`Child::fork`] creates the process without waiting for a file system;
//! [`Child::wait`] learns whether `exec` succeeded, which a file system can delay for ever.
//!
//! A child that has exited is not reaped until its [`Child`] is dropped, so that its pid, which is also
//! its process group and session, is not reused while signals are sent to it.

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
    /// Readable when the process has exited.
    pidfd: AsyncFd<OwnedFd>,
    /// The child writes an error here if it cannot execute its program. Closed by `exec`.
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
    /// The exit status as a shell reports it: 128 + signal for a signal.
    pub(super) const fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => EXIT_SIGNAL_BASE + signal,
        }
    }

    /// The signal that killed it, if any.
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
    /// The program or its interpreter does not exist.
    #[error("command not found: {program}")]
    NotFound { program: String, source: io::Error },
    /// The program exists, but is not executable for the user.
    #[error("command not executable: {program}")]
    NotExecutable { program: String, source: io::Error },
    /// The working directory does not exist, or is not accessible for the user.
    #[error("cannot change to the directory {directory}")]
    Directory {
        directory: String,
        source: io::Error,
    },
    /// Arguments and environment exceed the kernel's limit (`E2BIG`).
    #[error("the argument list is too long")]
    TooLong { source: io::Error },
    /// Setting the user or groups failed.
    #[error("cannot become the user {uid}")]
    Identity { uid: u32, source: io::Error },
    /// Another system call failed.
    #[error("cannot {step}")]
    System {
        step: &'static str,
        source: io::Error,
    },
    /// A signal killed its process before `exec`.
    #[error("killed by signal {0} before it ran")]
    Killed(i32),
    /// The agent ended it before `exec`.
    #[error("ended before it ran: {0}")]
    Ended(&'static str),
    /// SIGKILL has no effect: it waits in the kernel for a device or a file system
    /// (`TASK_UNINTERRUPTIBLE`).
    #[error("ended, because {0}, but its process cannot be killed while it waits in the kernel")]
    Unkillable(&'static str),
}

impl RunError {
    /// The exit status as a shell reports it: 127 not found, 128 + signal for a signal, else 126.
    pub(crate) const fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => EXIT_NOT_FOUND,
            Self::Killed(signal) => EXIT_SIGNAL_BASE + *signal,
            Self::Ended(_) | Self::Unkillable(_) => EXIT_SIGNAL_BASE + libc::SIGKILL,
            _ => EXIT_NOT_EXECUTABLE,
        }
    }

    /// A word for programs, if the command's program was never executed.
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

/// The steps of the child between `fork` and `exec`, in their order.
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

/// The descriptor of the report in the child: the first one after the streams.
const REPORT: RawFd = 3;

/// Set in a process's flags until it calls `exec` (`PF_FORKNOEXEC`,
/// `include/linux/sched.h`).
const FORKED_WITHOUT_EXEC: u64 = 0x40;

/// At least as large as the kernel's `struct sigaction`, in 64-bit words
/// (`include/linux/signal_types.h`: handler, flags, restorer, mask).
const SIGACTION_WORDS: usize = 4;

/// Size of the kernel's signal set, in bytes: one bit for each of [`MAX_SIGNAL`].
const SIGNAL_SET_BYTES: usize = 8;

/// Size of a failure report: the step, and the errno in native byte order. Below `PIPE_BUF`, so that
/// the write is atomic.
const REPORT_BYTES: usize = 5;

impl Child {
    /// Creates the process. Blocks as long as `fork(2)` does, not until `exec`.
    ///
    /// # Errors
    ///
    /// [`RunError`]; there is no process then.
    pub(super) fn fork(
        spec: Arc<ExecSpec>,
        stdio: Stdio,
        cgroup_procs: Option<OwnedFd>,
    ) -> Result<Self, RunError> {
        let system = |step| move |source| RunError::System { step, source };
        let (report, report_in) = pipe2(OFlag::O_CLOEXEC)
            .map_err(io::Error::from)
            .map_err(system("make a pipe"))?;
        let report = pipe::Receiver::from_owned_fd(report).map_err(system("watch a pipe"))?;
        let plan = Plan::new(&spec, &stdio, cgroup_procs.as_ref());
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

    /// Its pid, which is also the id of its process group and session.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether `exec` has succeeded. [`started`](Self::started) may resolve later: a child that was
    /// forked meanwhile has a copy of the report pipe until its own `exec`.
    pub(super) fn is_started(&self) -> bool {
        !never_executed(self.pid)
    }

    /// Waits until `exec` succeeds or fails.
    ///
    /// # Errors
    ///
    /// Why `exec` failed. Only the first call returns it.
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

    /// Waits until it exits, without reaping it.
    ///
    /// # Errors
    ///
    /// Why `exec` failed.
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
    /// Lets the process continue when this is dropped.
    pub(super) fn detach(&self) {
        self.kill_on_drop.store(false, Ordering::Release);
    }
}

impl Drop for Child {
    /// Kills the process and its group if it has not exited and is not detached. Reaps it.
    fn drop(&mut self) {
        if *self.kill_on_drop.get_mut() && matches!(exit_of(self.pid), Ok(None)) {
            let _ = killpg(self.pid, Signal::SIGKILL);
            // It may not lead a group yet.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        reaper::reap(self.pid);
    }
}

/// A pidfd: readable when the process has exited.
fn watch(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    let pidfd = pidfd_open(pid)?;
    // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    Ok(watched?)
}

/// How a process exited, if it has. Does not reap it.
fn exit_of(pid: Pid) -> io::Result<Option<ExitStatus>> {
    // nix fails for a process that was killed by a real-time signal or one of the two reserved by the C
    // library.
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let id = libc::id_t::try_from(pid.as_raw()).map_err(io::Error::other)?;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel writes the structure, or nothing.
    Errno::result(unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), flags) })?;
    // SAFETY: all zero is valid, and what the kernel writes too.
    let info = unsafe { info.assume_init() };
    // SAFETY: `waitid(2)` gives this field, or zero if the process has not exited.
    let ended = unsafe { info.si_pid() } != 0;
    // SAFETY: as above.
    let number = unsafe { info.si_status() };
    Ok(ended.then_some(match info.si_code {
        libc::CLD_EXITED => ExitStatus::Code(number),
        _ => ExitStatus::Signal(number),
    }))
}

/// Whether a process that is not reaped yet has not called `exec`.
fn never_executed(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = ProcStat::parse(&stat).and_then(|stat| stat.number::<u64>(9));
    flags.is_some_and(|flags| flags & FORKED_WITHOUT_EXEC != 0)
}

impl ExecSpec {
    /// The error that the child reported.
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

/// What the child needs, as pointers and numbers that stay valid across `fork`.
struct Plan<'a> {
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
    /// Writing `0` here moves the writer into its control group.
    cgroup_procs: Option<RawFd>,
}

impl<'a> Plan<'a> {
    fn new(spec: &'a ExecSpec, stdio: &Stdio, cgroup_procs: Option<&OwnedFd>) -> Self {
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
            cgroup_procs: cgroup_procs.map(AsRawFd::as_raw_fd),
        }
    }
}

/// Forks, and runs `plan` in the child.
fn fork(plan: &Plan<'_>, report: &OwnedFd) -> Result<Pid, Errno> {
    // The agent's signal handlers must not run in the child: they write to the agent's pipes.
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
    // Cannot fail with these arguments.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    match forked? {
        unistd::ForkResult::Parent { child } => Ok(child),
        unistd::ForkResult::Child => Err(Errno::ECHILD),
    }
}

/// Runs in the child: prepares and executes, or reports an error and exits.
///
/// # Safety
///
/// Only between `fork` and `exec`, and only system calls. `plan` must be readable.
unsafe fn run(plan: &Plan<'_>, mut report: RawFd) -> ! {
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
    let mut message = [step as u8; REPORT_BYTES];
    message[1..].copy_from_slice(&(errno as i32).to_ne_bytes());
    // SAFETY: `message` is as long as it says. A failure cannot be reported.
    unsafe { libc::write(report, message.as_ptr().cast(), REPORT_BYTES) };
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
unsafe fn set_up(plan: &Plan<'_>, report: &mut RawFd, step: &mut Step) -> Result<(), Errno> {
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
        if *report != REPORT {
            Errno::result(libc::dup3(*report, REPORT, libc::O_CLOEXEC))?;
            *report = REPORT;
        }
        close_all_from(REPORT + 1)?;
        *step = Step::Signals;
        reset_signals()?;
        reset_limits();
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

/// Resets all signals to their default action and unblocks them. The agent's settings must not be
/// inherited.
///
/// # Safety
///
/// As [`run`].
unsafe fn reset_signals() -> Result<(), Errno> {
    // All zero: the default action, no flags, an empty mask. The C library's function rejects the two
    // signals it reserves, which may be ignored too.
    let default = [0_u64; SIGACTION_WORDS];
    for signal in 1..=MAX_SIGNAL {
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

/// Resets the agent's own limit on open files and its out-of-memory score. Errors are ignored: the
/// command can run without.
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
    // SAFETY: the kernel has just created this descriptor; it has no other owner.
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
        let request = ExecRequest::new(["sh", "-c", script].map(str::to_owned).into());
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
