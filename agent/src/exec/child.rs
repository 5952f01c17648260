//! One process: start, wait, signals.
//!
//! A command that runs as the agent's own user shares the agent's memory until `exec` ([`Memory::Shared`]),
//! which costs a third less time at 5 MB of memory. `exec` may wait for a file system for ever, and then a
//! thread waits with it; so [`MAX_SHARED_STARTS`] limits them, and after [`QUICK_START`] nothing else waits for
//! the thread. Other commands get a copy of the memory: a process of another user must not share it, whatever
//! the kernel allows that user to do to its processes.
//!
//! Starting has two steps. [`Child::start`] creates the process without waiting for a file system;
//! [`Child::wait`] learns whether `exec` succeeded, which a file system can delay for ever.
//!
//! A child that has exited is not reaped until its [`Child`] is dropped, so that its pid, which is also
//! its process group and session, is not reused while signals are sent to it.

#![allow(unsafe_code, reason = "clone, fork, and system calls on processes")]

use std::{
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    pin::pin,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, killpg, pthread_sigmask},
        stat::Mode,
    },
    unistd::{self, Pid, getegid, geteuid, pipe2},
};
use tokio::{
    io::unix::AsyncFd,
    net::unix::pipe,
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::exec::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_SIGNAL_BASE};

use super::{
    clone::{Memory, Numbers, clone},
    plan::{self, Failure, Plan, Report, SharedMemory, Step},
    spec::{Directory, ExecSpec},
};
use crate::system::{blocking::run_blocking, pidfd, proc_stat::ProcStat, reaper};

/// Maximum number of children that share the agent's memory at once, each with a thread of the blocking pool
/// that waits: half of the pool. Further children get a copy.
const MAX_SHARED_STARTS: usize = 32;

/// Time after which a start counts as one that hangs. `exec` takes 0.1 ms without a disk.
const QUICK_START: Duration = Duration::from_millis(10);

/// Permits of [`MAX_SHARED_STARTS`].
static SHARED_STARTS: Semaphore = Semaphore::const_new(MAX_SHARED_STARTS);

/// A process the agent started. It leads its own session and process group. Reaped in `Drop`.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Readable when the process has exited.
    pidfd: AsyncFd<OwnedFd>,
    started: Started,
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

/// Set in a process's flags until it calls `exec` (`PF_FORKNOEXEC`,
/// `include/linux/sched.h`).
const FORKED_WITHOUT_EXEC: u64 = 0x40;

/// How a child's `exec` becomes known.
#[derive(Debug)]
enum Started {
    /// The child writes the number of its [`Failure`] here. Closed by `exec`.
    Pipe(pipe::Receiver),
    Launch(Arc<Launch>),
}

/// What a process is made of.
#[derive(Debug)]
pub(super) struct Seed {
    pub(super) spec: Arc<ExecSpec>,
    pub(super) stdio: Stdio,
    /// The directory of its control group.
    pub(super) cgroup: Option<OwnedFd>,
}

impl Seed {
    /// Whether the process may share the agent's memory: it has the agent's user and group from the start.
    fn has_agent_identity(&self) -> bool {
        let is_own = (self.spec.uid, self.spec.gid) == (geteuid().as_raw(), getegid().as_raw());
        is_own || self.spec.is_agent_user
    }

    /// Creates the process. With [`Memory::Shared`], blocks until `exec`.
    fn create(&self, memory: Memory, numbers: &Numbers, report: Report<'_>) -> Result<(), Errno> {
        let plan = Plan::new(&self.spec, &self.stdio, report);
        let cgroup = self.cgroup.as_ref().map(OwnedFd::as_fd);
        without_signals(|| {
            // SAFETY: `run` is made for this, and `plan` lives as long as the call. All signals are blocked. A
            // process that shares the memory sets the user and group that it has, and changes only its
            // `report` in memory.
            unsafe { clone(memory, cgroup, numbers, plan::run, (&raw const plan).cast()) }
        })?
    }

    /// Creates the process by `fork(2)`, for kernels without `clone3(2)`.
    fn fork(&self, report: &OwnedFd) -> io::Result<(Pid, OwnedFd)> {
        let procs = self.cgroup.as_ref().and_then(|cgroup| {
            openat(
                cgroup,
                "cgroup.procs",
                OFlag::O_WRONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .ok()
        });
        let plan = Plan::new(&self.spec, &self.stdio, Report::Pipe(report.as_raw_fd()))
            .for_fork(procs.as_ref());
        let forked = without_signals(|| {
            // SAFETY: the child makes system calls only, and never returns from `run`.
            let forked = unsafe { unistd::fork() };
            if let Ok(unistd::ForkResult::Child) = forked {
                // SAFETY: this is a child, and `plan` points at memory that it has a copy of.
                unsafe { plan::run((&raw const plan).cast()) }
            }
            forked
        })??;
        let unistd::ForkResult::Parent { child } = forked else {
            return Err(Errno::ECHILD.into());
        };
        let pidfd = pidfd::open(child).inspect_err(|_| kill_and_reap(child))?;
        Ok((child, pidfd))
    }
}

/// A child that shares the agent's memory, until its `exec`. `Drop` ends a process that nothing has taken.
#[derive(Debug, Default)]
struct Launch {
    numbers: Numbers,
    shared: SharedMemory,
    /// Cancelled when the child has called `exec` or exited, or does not exist.
    ended: CancellationToken,
}

impl Launch {
    fn kill(&self) {
        if let Some((pid, _)) = self.numbers.take() {
            kill_and_reap(pid);
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends the process of a [`Launch`] when the one who waits for it is dropped, without waiting for `exec`.
struct Abandoned<'a>(&'a Launch);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        // A process that has no number yet will see this: it runs after it has got one.
        self.0.shared.is_abandoned.store(true, Ordering::SeqCst);
        self.0.kill();
    }
}

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { step, source }
}

impl Child {
    /// Creates the process. Takes as long as `fork(2)` does, or [`QUICK_START`] if `exec` hangs.
    ///
    /// Dropping the future ends a process that it has created.
    ///
    /// # Errors
    ///
    /// [`RunError`]; there is no process then.
    pub(super) async fn start(seed: Seed) -> Result<Self, RunError> {
        let permit = SHARED_STARTS
            .try_acquire()
            .ok()
            .filter(|_| seed.has_agent_identity());
        match permit {
            Some(permit) => Self::share(seed, permit).await,
            None => run_blocking(move || Self::copy(&seed))
                .await
                .map_err(failed("start"))?,
        }
    }

    async fn share(seed: Seed, permit: SemaphorePermit<'static>) -> Result<Self, RunError> {
        let launch = Arc::new(Launch::default());
        let abandoned = Abandoned(&launch);
        let spec = Arc::clone(&seed.spec);
        let ended = launch.ended.clone().drop_guard();
        let on_thread = Arc::clone(&launch);
        let mut work = pin!(run_blocking(move || {
            let (_ended, _permit) = (ended, permit);
            let report = Report::Memory(&on_thread.shared);
            match seed.create(Memory::Shared, &on_thread.numbers, report) {
                Ok(()) => Ok(None),
                Err(_) => Self::copy(&seed).map(Some),
            }
        }));
        loop {
            let done = timeout(QUICK_START, &mut work).await.ok();
            let is_done = done.is_some();
            let done = done.transpose().map_err(failed("start"))?;
            if let Some(Some(copied)) = done.transpose()? {
                return Ok(copied);
            }
            if let Some((pid, pidfd)) = launch.numbers.take() {
                // Not abandoned.
                std::mem::forget(abandoned);
                return Self::new(pid, pidfd, Started::Launch(launch), spec);
            }
            if is_done {
                return Err(failed("start")(Errno::ECHILD.into()));
            }
        }
    }

    fn copy(seed: &Seed) -> Result<Self, RunError> {
        let made = pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
        let (report, report_in) = made.map_err(failed("make a pipe"))?;
        let report = pipe::Receiver::from_owned_fd(report).map_err(failed("watch a pipe"))?;
        let numbers = Numbers::default();
        let in_child = Report::Pipe(report_in.as_raw_fd());
        let created = seed.create(Memory::Copied, &numbers, in_child);
        let (pid, pidfd) = match created.ok().and_then(|()| numbers.take()) {
            Some(created) => created,
            None => seed.fork(&report_in).map_err(failed("fork"))?,
        };
        let spec = Arc::clone(&seed.spec);
        Self::new(pid, pidfd, Started::Pipe(report), spec)
    }

    fn new(
        pid: Pid,
        pidfd: OwnedFd,
        started: Started,
        spec: Arc<ExecSpec>,
    ) -> Result<Self, RunError> {
        let pidfd = pidfd::watch(pidfd)
            .inspect_err(|_| kill_and_reap(pid))
            .map_err(failed("watch the process"))?;
        Ok(Self {
            pid,
            pidfd,
            started,
            kill_on_drop: AtomicBool::new(true),
            spec,
        })
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
        let number = match &self.started {
            Started::Pipe(pipe) => read_number(pipe)
                .await
                .map_err(failed("wait for its start"))?,
            Started::Launch(launch) => {
                launch.ended.cancelled().await;
                launch.shared.failure.swap(0, Ordering::AcqRel)
            }
        };
        Failure::of(number).map_or(Ok(()), |failure| Err(self.spec.explain(failure)))
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
            return kill_and_reap(self.pid);
        }
        reaper::reap(self.pid);
    }
}

/// Reads the number of a [`Failure`]; 0 at the end of file.
async fn read_number(pipe: &pipe::Receiver) -> io::Result<u64> {
    let mut message = [0; size_of::<u64>()];
    loop {
        pipe.readable().await?;
        match pipe.try_read(&mut message) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read.map(|_| u64::from_ne_bytes(message)),
        }
    }
}

/// Runs `work` with all signals blocked: the agent's signal handlers must not run in a child, as they write to
/// the agent's pipes.
fn without_signals<T>(work: impl FnOnce() -> T) -> Result<T, Errno> {
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    let done = work();
    // Cannot fail with these arguments.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    Ok(done)
}

/// Kills a child and its process group, and reaps it.
fn kill_and_reap(pid: Pid) {
    let _ = killpg(pid, Signal::SIGKILL);
    // It may not lead a group yet.
    let _ = kill(pid, Signal::SIGKILL);
    reaper::reap(pid);
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
    fn explain(&self, Failure { step, errno }: Failure) -> RunError {
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
    let Ok(pidfd) = pidfd::open(pid) else { return };
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

#[cfg(test)]
mod tests {
    use vsock_agent_protocol::exec::ExecRequest;

    use super::*;
    use crate::{exec::AgentUser, system::accounts::Accounts};

    fn seed(script: &str, stdio: Stdio) -> Seed {
        let request = ExecRequest::new(["sh", "-c", script].map(str::to_owned).into());
        let accounts = Accounts::read().unwrap();
        let agent = AgentUser::unless_root();
        let spec = ExecSpec::resolve(&request, &accounts, agent.as_ref()).unwrap();
        Seed {
            spec: Arc::new(spec),
            stdio,
            cgroup: None,
        }
    }

    /// Standard input, and both outputs as one.
    fn pipes() -> (Stdio, OwnedFd, OwnedFd) {
        let (stdin, input) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (output, stdout) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let stderr = stdout.try_clone().unwrap();
        let stdio = Stdio {
            stdin,
            stdout,
            stderr,
        };
        (stdio, input, output)
    }

    #[test]
    fn only_a_process_with_the_agents_user_and_group_shares_its_memory() {
        let shares = |change: fn(&mut ExecSpec)| {
            let mut seed = seed("true", pipes().0);
            let spec = Arc::get_mut(&mut seed.spec).unwrap();
            spec.is_agent_user = false;
            (spec.uid, spec.gid) = (geteuid().as_raw(), getegid().as_raw());
            change(spec);
            seed.has_agent_identity()
        };
        assert!(shares(|_| {}));
        assert!(!shares(|spec| spec.uid += 1));
        assert!(!shares(|spec| spec.gid += 1));
    }

    #[tokio::test]
    async fn each_way_to_create_a_process_runs_its_program_with_default_signals() {
        let script = "grep -c '^Sig\\(Ign\\|Blk\\):.0*$' /proc/self/status; exit 7";
        let with_fork = |seed: Seed| {
            let (report, report_in) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let (pid, pidfd) = seed.fork(&report_in).unwrap();
            drop(report_in);
            let report = Started::Pipe(pipe::Receiver::from_owned_fd(report).unwrap());
            Child::new(pid, pidfd, report, Arc::clone(&seed.spec))
        };
        for way in ["shared", "copied", "forked"] {
            let (stdio, _input, output) = pipes();
            let seed = seed(script, stdio);
            let child = match way {
                "shared" => Child::start(seed).await,
                "copied" => Child::copy(&seed),
                _ => with_fork(seed),
            };
            let child = child.unwrap();
            let is_shared = matches!(child.started, Started::Launch(_));
            assert_eq!(is_shared, way == "shared");
            assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(7), "{way}");
            let mut text = [0; 16];
            assert_eq!(unistd::read(&output, &mut text).unwrap(), 2, "{way}");
            assert_eq!(&text[..2], b"2\n", "{way}");
        }
    }

    #[tokio::test]
    async fn a_process_whose_start_is_given_up_does_not_remain() {
        let (stdio, _input, output) = pipes();
        let mut start = Box::pin(Child::start(seed("sleep 1000", stdio)));
        // Only its work is queued.
        assert!(futures_util::poll!(&mut start).is_pending());
        drop(start);
        // It ends when no process has the other end.
        let read = tokio::task::spawn_blocking(move || unistd::read(&output, &mut [0; 1]));
        assert_eq!(read.await.unwrap(), Ok(0));
    }

    #[tokio::test]
    async fn what_runs_has_started_before_that_is_waited_for() {
        let (stdio, _input, output) = pipes();
        let child = Child::start(seed("echo up; exec sleep 1000", stdio))
            .await
            .unwrap();
        assert_eq!(unistd::read(&output, &mut [0; 16]).unwrap(), 3);
        assert!(child.is_started());
    }
}
