//! The threads of a session in the Leader/Followers pattern, without their I/O: which of them leads,
//! and what the others do.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;

use super::{Condvar, Mutex, MutexGuard, write_behind::WriteBehind};
use crate::{
    defaults,
    sftp::{access::AccessSet, budget::Budget, scheduler::Scheduler},
};

/// Interval at which the watcher looks at the input. A request that is still running at the second
/// look is late.
const WATCH_INTERVAL: Duration = Duration::from_millis(4);

/// While all threads are busy: interval at which the watcher checks whether the client is still
/// connected.
const HANGUP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Time after which an idle follower exits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval at which a leader that waits looks at the budget of all sessions.
const BUDGET_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// How long the leader waits for a free buffer. A write that takes longer is slow, and waits with the
/// other requests.
const BUFFER_TIMEOUT: Duration = Duration::from_millis(4);

/// How long one request may take after the client has closed its sending side.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The same when the client is gone and no write is queued: the replies have no receiver.
const HUNG_UP_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What the threads need of their session. [`SessionIo::flush`] and [`SessionIo::end_session`] may block, and are
/// called without the lock.
pub(super) trait SessionIo {
    /// Starts a thread that takes roles until [`Role::Exit`].
    fn spawn(&self) -> io::Result<()>;

    /// Sends the replies that are gathered.
    fn flush(&self);

    /// Whether the client has closed the connection.
    fn is_hung_up(&self) -> bool;

    /// Calls [`Followers::end`].
    fn end_session(&self);
}

/// The threads, and the work that they take from each other: the leader's input `I`, requests `J`
/// that wait, and queued writes `W`.
#[derive(Debug)]
pub(super) struct Followers<I, J, W> {
    state: Mutex<State<I, J, W>>,
    /// Wakes the watcher: there is an input to watch, or a thread is done.
    watch: Condvar,
    /// Wakes an idle follower.
    wake: Condvar,
    /// Wakes the leader: fewer requests wait, or fewer writes are queued.
    progress: Condvar,
    limits: Limits,
    budget: Arc<Budget>,
}

/// Limits of the threads of a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most threads that run requests. One more reads or watches.
    pub(super) workers: usize,
    /// Looks without an input after which the watcher sleeps until it is woken.
    pub(super) idle_looks: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: defaults::MAX_SFTP_WORKERS,
            idle_looks: 10,
        }
    }
}

/// One lock for all: a thread sleeps when there is neither an input, nor a request that may run, nor
/// a queue to write. With a lock for each, it would miss what happens between two looks.
#[derive(Debug)]
struct State<I, J, W> {
    scheduler: Scheduler<J>,
    write_behind: WriteBehind<W>,
    /// The input, while the leader runs a request.
    input: Option<I>,
    /// Counts how often the input was offered: tells a thread whether `input` is still its own.
    turn: u64,
    /// All threads, the leader too.
    threads: usize,
    /// Those that wait for a role.
    idle: usize,
    /// Those of them that were notified and have not run yet.
    woken: usize,
    has_watcher: bool,
    /// Whether the watcher waits for a notification, not for its interval.
    watcher_sleeps: bool,
    ended: bool,
}

/// What a thread does next.
#[derive(Debug)]
pub(super) enum Role<I, J> {
    Lead(I),
    /// Run a request that had to wait, and [finish](Followers::finish) it.
    Run(u64, J),
    /// Write until [`Followers::next_write`] gives no more.
    WriteBehind,
    Exit,
}

/// Whether a request of the leader runs.
#[derive(Debug)]
pub(super) enum Start<I> {
    /// It may run. The input is offered to the watcher; [`Followers::reclaim`] asks for it.
    Runs {
        turn: u64,
        ticket: u64,
    },
    /// It waits; another thread runs it.
    Waits(I),
    Ended,
}

/// What was left when a session ended. Dropping it may block, in the file systems of its files.
type Remains<I, J, W> = (Option<I>, Vec<J>, Vec<W>);

impl<I, J: AsRef<[u8]>, W> Followers<I, J, W> {
    /// With one thread, which leads. The caller starts it.
    pub(super) fn new(limits: Limits, budget: Arc<Budget>) -> Self {
        Self {
            state: Mutex::new(State {
                scheduler: Scheduler::default(),
                write_behind: WriteBehind::default(),
                input: None,
                turn: 0,
                threads: 1,
                idle: 0,
                woken: 0,
                has_watcher: false,
                watcher_sleeps: false,
                ended: false,
            }),
            watch: Condvar::new(),
            wake: Condvar::new(),
            progress: Condvar::new(),
            limits,
            budget,
        }
    }

    /// Locks, also after a panic: that ends the session, and leaves nothing half done here.
    fn lock(&self) -> MutexGuard<'_, State<I, J, W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that there is a watcher. Called by a thread that starts to lead.
    pub(super) fn need_watcher(&self, io: &impl SessionIo) {
        let mut state = self.lock();
        if !state.has_watcher {
            self.wake_follower(&mut state, io);
        }
    }

    /// Starts a request that the leader has read, or has it wait behind those it conflicts with.
    pub(super) fn start(&self, access: AccessSet, input: I, job: impl FnOnce() -> J) -> Start<I> {
        let mut state = self.lock();
        if state.ended {
            return Start::Ended;
        }
        if !state.scheduler.may_start(&access) {
            state.scheduler.wait(access, job());
            return Start::Waits(input);
        }
        let ticket = state.scheduler.start(access);
        let turn = self.leave_input(&mut state, input);
        Start::Runs { turn, ticket }
    }

    /// Leaves the input to the watcher, while the leader does something else than a request. Returns
    /// the turn for [`Self::reclaim`].
    pub(super) fn offer(&self, input: I) -> u64 {
        self.leave_input(&mut self.lock(), input)
    }

    fn leave_input(&self, state: &mut State<I, J, W>, input: I) -> u64 {
        state.turn += 1;
        state.input = Some(input);
        if std::mem::take(&mut state.watcher_sleeps) {
            self.watch.notify_one();
        }
        state.turn
    }

    /// Gives the input back to the leader, whose request `ticket` is finished then. `None` if another
    /// thread leads now: the request is finished when its reply is sent.
    pub(super) fn reclaim(&self, turn: u64, ticket: Option<u64>) -> Option<I> {
        let mut state = self.lock();
        let is_own = state.turn == turn;
        let input = state.input.take_if(|_| is_own)?;
        if let Some(ticket) = ticket {
            state.scheduler.finish(ticket);
        }
        Some(input)
    }

    /// Finishes a request of a thread that does not lead. Its reply was sent: requests that wait for it
    /// start now, so that their replies come after it.
    pub(super) fn finish(&self, ticket: u64) {
        self.lock().scheduler.finish(ticket);
        self.progress.notify_all();
    }

    /// What this thread does next. Blocks until there is something.
    pub(super) fn next_role(&self, io: &impl SessionIo) -> Role<I, J> {
        let mut state = self.lock();
        if state.watcher_sleeps {
            // This thread is free: the input may be taken, or a waiting request may start.
            self.watch.notify_one();
        }
        loop {
            if state.ended {
                state.threads -= 1;
                return Role::Exit;
            }
            if state.write_behind.take_writer_request() {
                return Role::WriteBehind;
            }
            if let Some((ticket, job)) = state.scheduler.start_ready() {
                self.progress.notify_all();
                // This thread may have been the watcher.
                if state.scheduler.has_ready() || !state.has_watcher {
                    self.wake_follower(&mut state, io);
                }
                return Role::Run(ticket, job);
            }
            if !state.has_watcher {
                let input;
                (state, input) = self.watch_leader(state, io);
                if let Some(input) = input {
                    return Role::Lead(input);
                }
                continue;
            }
            state.idle += 1;
            let timed_out;
            (state, timed_out) = wait(&self.wake, state, IDLE_TIMEOUT);
            state.idle -= 1;
            state.woken = state.woken.saturating_sub(1);
            let is_needed = state.scheduler.has_ready() || state.write_behind.wants_writer();
            if timed_out && state.has_watcher && !is_needed && !state.ended {
                state.write_behind.free_buffers();
                state.threads -= 1;
                return Role::Exit;
            }
        }
    }

    /// Wakes an idle follower, or starts one. False if neither is possible: the session goes on with
    /// the threads it has.
    fn wake_follower(&self, state: &mut State<I, J, W>, io: &impl SessionIo) -> bool {
        if state.idle > state.woken {
            state.woken += 1;
            self.wake.notify_one();
            return true;
        }
        if state.threads > self.limits.workers {
            return false;
        }
        let started = io.spawn();
        if let Err(error) = &started {
            tracing::warn!(%error, "cannot start another thread of an SFTP session");
        }
        state.threads += usize::from(started.is_ok());
        started.is_ok()
    }

    /// Watches until the leader is late, and takes the input then. Returns without it when the session
    /// ends or a waiting request may start.
    fn watch_leader<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<I, J, W>>,
        io: &impl SessionIo,
    ) -> (MutexGuard<'a, State<I, J, W>>, Option<I>) {
        state.has_watcher = true;
        let (mut seen, mut flushed) = (None, false);
        let mut idle = 0;
        let input = loop {
            if state.ended || state.scheduler.has_ready() {
                break None;
            }
            let current = state.input.is_some().then_some(state.turn);
            if current.is_some() && current == seen {
                if state.scheduler.running() < self.limits.workers {
                    break state.input.take();
                }
                // All threads are late: nothing is read until one is done.
                if !flushed {
                    flushed = true;
                    drop(state);
                    io.flush();
                    state = self.lock();
                    // It may have changed meanwhile.
                    continue;
                }
                state = self.sleep(state, Some(HANGUP_CHECK_INTERVAL));
                if io.is_hung_up() {
                    drop(state);
                    io.end_session();
                    state = self.lock();
                }
                (seen, flushed) = (None, false);
                continue;
            }
            idle = if current.is_some() { 0 } else { idle + 1 };
            (seen, flushed) = (current, false);
            state = if idle < self.limits.idle_looks {
                wait(&self.watch, state, WATCH_INTERVAL).0
            } else {
                idle = 0;
                self.sleep(state, None)
            };
        };
        state.has_watcher = false;
        (state, input)
    }

    /// Waits for a notification of [`Self::watch`], at most for `limit`.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State<I, J, W>>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State<I, J, W>> {
        state.watcher_sleeps = true;
        let mut state = match limit {
            None => self
                .watch
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => wait(&self.watch, state, limit).0,
        };
        state.watcher_sleeps = false;
        state
    }

    /// Whether the leader must [wait](Self::wait_for_room) before it reads more. The budget of all
    /// sessions does not stop a session in which no request waits.
    pub(super) fn is_full(&self) -> bool {
        self.lock().is_full(&self.budget)
    }

    /// Blocks the leader while too many requests wait.
    ///
    /// # Errors
    ///
    /// When the client closes the connection meanwhile.
    pub(super) fn wait_for_room(&self, io: &impl SessionIo) -> io::Result<()> {
        let mut state = self.lock();
        while state.is_full(&self.budget) && !state.ended {
            state = wait(&self.progress, state, BUDGET_CHECK_INTERVAL).0;
            if io.is_hung_up() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reserves a place in the queue for a WRITE, if it may be queued now, and gives its ticket and a
    /// buffer that was used before, or an empty one. Waits up to [`BUFFER_TIMEOUT`] for a free one.
    pub(super) fn reserve_write(
        &self,
        handle: &Bytes,
        access: AccessSet,
    ) -> Option<(u64, Vec<u8>)> {
        let mut state = self.lock();
        if state.write_behind.is_worth_waiting_for(handle) {
            let full = |state: &mut State<I, J, W>| state.write_behind.is_full() && !state.ended;
            let waited = self
                .progress
                .wait_timeout_while(state, BUFFER_TIMEOUT, full);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.write_behind.note_waited();
        }
        let may_queue = state.write_behind.accepts(handle, self.budget.is_spent())
            && state.scheduler.may_write_behind(&access);
        if state.ended || !may_queue {
            return None;
        }
        let ticket = state.scheduler.start_write_behind(access);
        Some((ticket, state.write_behind.reserve(handle)))
    }

    /// Queues a WRITE whose data were read. False if no other thread writes: the caller must do so
    /// until [`Self::next_write`] gives no more.
    pub(super) fn queue_write(&self, write: W, io: &impl SessionIo) -> bool {
        let mut state = self.lock();
        state.write_behind.push(write);
        if state.write_behind.has_writer() {
            return true;
        }
        let woken = self.wake_follower(&mut state, io);
        state.write_behind.set_writer(woken);
        woken
    }

    /// The next queued write; `None` when the caller need not write any more.
    pub(super) fn next_write(&self) -> Option<W> {
        let next = self.lock().write_behind.pop();
        if next.is_none() {
            self.progress.notify_all();
        }
        next
    }

    /// Finishes a WRITE that was written, or is not to be queued. Its reply, if it has one, is
    /// gathered. Returns whether more are queued.
    pub(super) fn finish_write(&self, ticket: u64, buffer: Vec<u8>, io: &impl SessionIo) -> bool {
        let mut state = self.lock();
        state.write_behind.release(buffer);
        state.scheduler.finish(ticket);
        self.progress.notify_all();
        if state.scheduler.has_ready() {
            self.wake_follower(&mut state, io);
        }
        state.write_behind.has_queued()
    }

    /// Waits until all requests that arrived completely are answered, or the session has ended. Stops
    /// when none is done within a timeout.
    pub(super) fn drain(&self, io: &impl SessionIo) {
        let mut state = self.lock();
        while !state.ended && state.has_unanswered() {
            let before = state.unanswered();
            let limit = if state.write_behind.is_idle() && io.is_hung_up() {
                HUNG_UP_DRAIN_TIMEOUT
            } else {
                DRAIN_TIMEOUT
            };
            let timed_out;
            (state, timed_out) = wait(&self.progress, state, limit);
            if timed_out && state.unanswered() == before {
                return;
            }
        }
    }

    /// Ends the session: threads exit when they are done. Gives what nobody does any more; `None` if
    /// it had ended.
    pub(super) fn end(&self) -> Option<Remains<I, J, W>> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.ended, true) {
            return None;
        }
        let remains = (
            state.input.take(),
            state.scheduler.take_waiting(),
            state.write_behind.take_queue(),
        );
        drop(state);
        for condition in [&self.watch, &self.wake, &self.progress] {
            condition.notify_all();
        }
        Some(remains)
    }
}

/// Waits for a notification, at most for `limit`. The flag: whether none came.
fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Duration,
) -> (MutexGuard<'a, T>, bool) {
    let waited = condition.wait_timeout(guard, limit);
    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
    (guard, timeout.timed_out())
}

impl<I, J: AsRef<[u8]>, W> State<I, J, W> {
    fn is_full(&self, budget: &Budget) -> bool {
        let bytes: usize = self.scheduler.jobs().map(|job| job.as_ref().len()).sum();
        self.scheduler.waiting() >= defaults::MAX_SFTP_WAITING
            || bytes > defaults::MAX_SFTP_SESSION_WAITING_BYTES
            || bytes > 0 && budget.is_spent()
    }

    /// How many requests wait, and how many threads run one.
    fn unanswered(&self) -> (usize, usize) {
        (self.scheduler.waiting(), self.scheduler.running())
    }

    fn has_unanswered(&self) -> bool {
        self.unanswered() != (0, 0) || self.write_behind.has_writer()
    }
}
