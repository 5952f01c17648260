//! The threads that do not lead: the watcher, those that run a deferred request, the one that writes
//! behind, and idle ones.

use std::{
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    super::access::AccessSet, Input, ReadBuffer, SessionError, Shared, State, Waiting, decode,
};
use crate::defaults;

/// Interval at which the watcher looks at the input. A request that is still running at the second
/// look is late.
const WATCH_INTERVAL: Duration = Duration::from_millis(4);

/// Looks without an input after which the watcher sleeps until it is woken.
const IDLE_LOOKS: u32 = 10;

/// While all threads are busy: interval at which the watcher checks whether the client is still
/// connected.
const HANGUP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Time after which an idle follower exits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval at which a leader that waits looks at the budget of all sessions.
const BUDGET_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The threads of a session, counted.
#[derive(Debug, Default)]
pub(super) struct Followers {
    /// All of them, the leader too.
    pub(super) threads: usize,
    /// Those that wait for a role.
    idle: usize,
    /// Those of them that were notified and have not run yet.
    woken: usize,
    has_watcher: bool,
    /// Whether the watcher waits for a notification, not for its interval.
    watcher_sleeps: bool,
}

impl Followers {
    /// Whether the watcher was asleep, and must be notified.
    pub(super) fn wake_watcher(&mut self) -> bool {
        std::mem::take(&mut self.watcher_sleeps)
    }
}

/// What a follower does next.
enum Role {
    Lead(Box<Input>),
    Run(u64, Waiting),
    WriteBehind,
    Exit,
}

/// Ends the session when a thread panics: its request would never be answered.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Some(SessionError::Panic));
        }
    }
}

impl Shared {
    /// The main loop of a thread: leads while it has the input, then takes one role after the other.
    pub(super) fn run_thread(self: &Arc<Self>, input: Option<Box<Input>>) {
        let _guard = PanicGuard(self);
        let mut buffer = ReadBuffer::default();
        let mut result = match input {
            Some(input) => self.lead_watched(input, &mut buffer),
            None => Ok(()),
        };
        loop {
            if let Err(error) = result {
                self.end(Some(error));
            }
            // Frees its memory: it may be long until this thread reads again.
            buffer = ReadBuffer::default();
            result = match self.next_role() {
                Role::Lead(input) => self.lead_watched(input, &mut buffer),
                Role::Run(ticket, waiting) => self.run_deferred(ticket, &waiting, &mut buffer),
                Role::WriteBehind => self.write_queued(),
                Role::Exit => return,
            };
        }
    }

    /// Leads, and makes sure that there is a watcher.
    fn lead_watched(
        self: &Arc<Self>,
        input: Box<Input>,
        buffer: &mut ReadBuffer,
    ) -> Result<(), SessionError> {
        let mut state = self.lock();
        if !state.followers.has_watcher {
            self.wake_follower(&mut state);
        }
        drop(state);
        self.send_unsent_and(&[])?;
        self.lead(input, buffer)
    }

    /// Wakes an idle follower, or starts one. False if neither is possible: the session goes on with
    /// the threads it has.
    pub(super) fn wake_follower(self: &Arc<Self>, state: &mut State) -> bool {
        if state.followers.idle > state.followers.woken {
            state.followers.woken += 1;
            self.wake.notify_one();
            return true;
        }
        if state.followers.threads > defaults::MAX_SFTP_WORKERS {
            return false;
        }
        let started = self.spawn(state, |shared| shared.run_thread(None));
        if let Err(error) = &started {
            tracing::warn!(%error, "cannot start another thread of an SFTP session");
        }
        started.is_ok()
    }

    fn next_role(self: &Arc<Self>) -> Role {
        let mut state = self.lock();
        if state.followers.watcher_sleeps {
            // This thread is free: the input may be taken, or a deferred request may start.
            self.watch.notify_one();
        }
        loop {
            if state.ended {
                state.followers.threads -= 1;
                return Role::Exit;
            }
            if state.write_behind.take_writer_request() {
                return Role::WriteBehind;
            }
            if let Some((ticket, waiting)) = state.scheduler.start_ready() {
                state.waiting_bytes -= waiting.frame.len();
                self.budget.give_back(waiting.frame.len());
                self.progress.notify_one();
                // This thread may have been the watcher.
                if state.scheduler.has_ready() || !state.followers.has_watcher {
                    self.wake_follower(&mut state);
                }
                return Role::Run(ticket, waiting);
            }
            if !state.followers.has_watcher {
                let input;
                (state, input) = self.watch_leader(state);
                if let Some(input) = input {
                    self.wake_follower(&mut state);
                    return Role::Lead(input);
                }
                continue;
            }
            state.followers.idle += 1;
            let (woken, timeout) = self
                .wake
                .wait_timeout(state, IDLE_TIMEOUT)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.followers.idle -= 1;
            state.followers.woken = state.followers.woken.saturating_sub(1);
            let is_needed = state.scheduler.has_ready() || state.write_behind.wants_writer();
            if timeout.timed_out() && state.followers.has_watcher && !is_needed {
                state.write_behind.free_buffers();
                state.followers.threads -= 1;
                return Role::Exit;
            }
        }
    }

    /// Watches until the leader is late, and takes the input then. Returns without it when the session
    /// ends or a deferred request may start.
    fn watch_leader<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, Option<Box<Input>>) {
        state.followers.has_watcher = true;
        let mut seen = None;
        let mut idle = 0;
        let input = loop {
            if state.ended || state.scheduler.has_ready() {
                break None;
            }
            let current = state.input.is_some().then_some(state.turn);
            if current.is_some() && current == seen {
                if state.scheduler.running() < defaults::MAX_SFTP_WORKERS {
                    let mut input = state.input.take();
                    if let Some(input) = &mut input {
                        state.unsent.unsplit(input.replies.split());
                    }
                    break input;
                }
                // All threads are late: nothing is read until one is done.
                state = self.flush_replies(state);
                state = self.sleep(state, Some(HANGUP_CHECK_INTERVAL));
                if self.closer.is_hung_up() {
                    drop(state);
                    self.end(None);
                    state = self.lock();
                }
                seen = None;
                continue;
            }
            idle = if current.is_some() { 0 } else { idle + 1 };
            seen = current;
            state = if idle < IDLE_LOOKS {
                let ticked = self.watch.wait_timeout(state, WATCH_INTERVAL);
                ticked.unwrap_or_else(PoisonError::into_inner).0
            } else {
                idle = 0;
                self.sleep(state, None)
            };
        };
        state.followers.has_watcher = false;
        (state, input)
    }

    /// Waits for a notification of [`Shared::watch`], at most for `limit`.
    fn sleep<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        state.followers.watcher_sleeps = true;
        let mut state = match limit {
            None => self
                .watch
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let woken = self.watch.wait_timeout(state, limit);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.followers.watcher_sleeps = false;
        state
    }

    /// Sends the replies that were gathered before all threads were late.
    fn flush_replies<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let State { input, unsent, .. } = &mut *state;
        if let Some(input) = input {
            unsent.unsplit(input.replies.split());
        }
        drop(state);
        // If that fails, so does the next read.
        let _ = self.send_unsent_and(&[]);
        self.lock()
    }

    /// Has a request wait for others, and blocks the leader when too many wait.
    pub(super) fn defer(
        &self,
        mut state: MutexGuard<'_, State>,
        input: &mut Input,
        access: AccessSet,
        waiting: Waiting,
    ) -> io::Result<()> {
        self.budget.take(waiting.frame.len());
        state.waiting_bytes += waiting.frame.len();
        state.scheduler.wait(access, waiting);
        if !self.is_full(&state) {
            return Ok(());
        }
        drop(state);
        input.flush(&self.sink)?;
        let mut state = self.lock();
        while self.is_full(&state) && !state.ended {
            let waited = self.progress.wait_timeout(state, BUDGET_CHECK_INTERVAL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if self.closer.is_hung_up() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Whether no more requests may wait. The budget of all sessions does not stop a session in which
    /// no request waits.
    fn is_full(&self, state: &State) -> bool {
        state.scheduler.waiting() >= defaults::MAX_SFTP_WAITING
            || state.waiting_bytes > defaults::MAX_SFTP_SESSION_WAITING_BYTES
            || (state.waiting_bytes > 0 && self.budget.is_spent())
    }

    /// Runs a request that had to wait.
    fn run_deferred(
        self: &Arc<Self>,
        ticket: u64,
        waiting: &Waiting,
        buffer: &mut ReadBuffer,
    ) -> Result<(), SessionError> {
        let (id, request) = decode(&waiting.frame)?;
        let outcome = self.run(self.lock(), request, buffer);
        let (state, response) = self.store_outcome(outcome);
        drop(state);
        Ok(self.send_and_finish(ticket, id, response, buffer)?)
    }
}
