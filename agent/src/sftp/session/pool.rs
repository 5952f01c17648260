//! The threads of a session that do not lead: who watches, who works on what had to wait, and who
//! is not needed any more.

use std::{
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    super::{order::Claim, stream::Outgoing},
    Desk, Input, SessionError, Shared, Table, Waiting, decode,
};
use crate::defaults;

/// Time between two looks at the table. A request that is still there at the second one is late.
const WATCH_TICK: Duration = Duration::from_millis(4);

/// Looks at an empty table after which the watcher sleeps until it is told.
const IDLE_TICKS: u32 = 10;

/// While everybody is late: time between two looks whether the client is still there.
const GONE_TICK: Duration = Duration::from_millis(200);

/// How long a thread that is not needed stays, in case it is.
const SPARE_TIME: Duration = Duration::from_secs(1);

/// Pause before the budget of all sessions is looked at again.
const BUDGET_PAUSE: Duration = Duration::from_millis(10);

/// What a thread that does not lead does next.
enum Role {
    Lead(Box<Input>),
    Work(u64, Waiting),
    Land,
    Leave,
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
    /// A thread's life: it leads as long as it can, then does what there is to do.
    pub(super) fn live(self: &Arc<Self>, input: Option<Box<Input>>) {
        let _guard = PanicGuard(self);
        let mut desk = Desk::new(self.lends);
        let mut result = match input {
            Some(input) => self.lead_watched(input, &mut desk),
            None => Ok(()),
        };
        loop {
            if let Err(error) = result {
                self.end(Some(error));
            }
            // What a late one has read is large, and it may be long until it reads again.
            desk = Desk::new(self.lends);
            result = match self.next_role() {
                Role::Lead(input) => self.lead_watched(input, &mut desk),
                Role::Work(name, waiting) => self.work_off(name, &waiting, &mut desk),
                Role::Land => self.land_all(),
                Role::Leave => return,
            };
        }
    }

    /// Leads, and sees to it that somebody watches.
    fn lead_watched(
        self: &Arc<Self>,
        input: Box<Input>,
        desk: &mut Desk,
    ) -> Result<(), SessionError> {
        let mut table = self.lock();
        if !table.watched {
            self.call_help(&mut table);
        }
        drop(table);
        self.send_owed_and(Outgoing::EMPTY)?;
        self.lead(input, desk)
    }

    /// Wakes a spare thread, or starts one. False if there is none: the session goes on, serially.
    pub(super) fn call_help(self: &Arc<Self>, table: &mut Table) -> bool {
        if table.spares > table.called {
            table.called += 1;
            self.wake.notify_one();
            return true;
        }
        if table.threads > defaults::MAX_SFTP_WORKERS {
            return false;
        }
        let started = self.spawn(table, |shared| shared.live(None));
        if let Err(error) = &started {
            tracing::warn!(%error, "an SFTP session has to do with fewer threads");
        }
        started.is_ok()
    }

    fn next_role(self: &Arc<Self>) -> Role {
        let mut table = self.lock();
        if table.asleep {
            // Somebody is done, so that the input may be taken, or what waited may start.
            self.watch.notify_one();
        }
        loop {
            if table.ended {
                table.threads -= 1;
                return Role::Leave;
            }
            if table.landings.answer_call() {
                return Role::Land;
            }
            if let Some((name, waiting)) = table.order.start_ready() {
                table.waiting_bytes -= waiting.frame.len();
                self.budget.give_back(waiting.frame.len());
                self.room.notify_one();
                // It may have been the watcher.
                if table.order.has_ready() || !table.watched {
                    self.call_help(&mut table);
                }
                return Role::Work(name, waiting);
            }
            if !table.watched {
                let input;
                (table, input) = self.watch_over(table);
                if let Some(input) = input {
                    self.call_help(&mut table);
                    return Role::Lead(input);
                }
                continue;
            }
            table.spares += 1;
            let (woken, timeout) = self
                .wake
                .wait_timeout(table, SPARE_TIME)
                .unwrap_or_else(PoisonError::into_inner);
            table = woken;
            table.spares -= 1;
            table.called = table.called.saturating_sub(1);
            let is_needed = table.order.has_ready() || table.landings.calls();
            if timeout.timed_out() && table.watched && !is_needed {
                table.landings.tidy();
                table.threads -= 1;
                return Role::Leave;
            }
        }
    }

    /// Watches until the leader is late, and takes the input then. Comes back without it when
    /// there is something else to do.
    fn watch_over<'a>(
        &'a self,
        mut table: MutexGuard<'a, Table>,
    ) -> (MutexGuard<'a, Table>, Option<Box<Input>>) {
        table.watched = true;
        let mut seen = None;
        let mut idle = 0;
        let input = loop {
            if table.ended || table.order.has_ready() {
                break None;
            }
            let there = table.input.is_some().then_some(table.turn);
            if there.is_some() && there == seen {
                if table.order.running() < defaults::MAX_SFTP_WORKERS {
                    let mut input = table.input.take();
                    if let Some(input) = &mut input {
                        table.owed.unsplit(input.replies.split());
                    }
                    break input;
                }
                // Everybody is late. What is done already is told; then somebody has to finish.
                table = self.tell_what_is_done(table);
                table = self.sleep(table, Some(GONE_TICK));
                if self.closer.is_hung_up() {
                    drop(table);
                    self.end(None);
                    table = self.lock();
                }
                seen = None;
                continue;
            }
            idle = if there.is_some() { 0 } else { idle + 1 };
            seen = there;
            table = if idle < IDLE_TICKS {
                let ticked = self.watch.wait_timeout(table, WATCH_TICK);
                ticked.unwrap_or_else(PoisonError::into_inner).0
            } else {
                idle = 0;
                self.sleep(table, None)
            };
        };
        table.watched = false;
        (table, input)
    }

    /// Sleeps until there is something on the table, or somebody is done, or `limit` is over.
    fn sleep<'a>(
        &self,
        mut table: MutexGuard<'a, Table>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, Table> {
        table.asleep = true;
        let mut table = match limit {
            None => self
                .watch
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let woken = self.watch.wait_timeout(table, limit);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        table.asleep = false;
        table
    }

    /// Sends the replies that were gathered before everybody was late.
    fn tell_what_is_done<'a>(&'a self, mut table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        let Table { input, owed, .. } = &mut *table;
        if let Some(input) = input {
            owed.unsplit(input.replies.split());
        }
        drop(table);
        // If that fails, so does the next read.
        let _ = self.send_owed_and(Outgoing::EMPTY);
        self.lock()
    }

    /// Lets a request wait for others, and the leader too when too many do.
    pub(super) fn put_off(
        &self,
        mut table: MutexGuard<'_, Table>,
        input: &mut Input,
        claim: Claim,
        waiting: Waiting,
    ) -> io::Result<()> {
        self.budget.take(waiting.frame.len());
        table.waiting_bytes += waiting.frame.len();
        table.order.wait(claim, waiting);
        if !self.is_full(&table) {
            return Ok(());
        }
        drop(table);
        input.flush(&self.sink)?;
        let mut table = self.lock();
        while self.is_full(&table) && !table.ended {
            let waited = self.room.wait_timeout(table, BUDGET_PAUSE);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
            if self.closer.is_hung_up() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Whether no more requests may wait. The budget of all sessions never stops one that has
    /// nothing waiting.
    fn is_full(&self, table: &Table) -> bool {
        table.order.waiting() >= defaults::MAX_SFTP_WAITING
            || table.waiting_bytes > defaults::MAX_SFTP_SESSION_WAITING_BYTES
            || (table.waiting_bytes > 0 && self.budget.is_spent())
    }

    /// Does a request that had to wait.
    fn work_off(
        self: &Arc<Self>,
        name: u64,
        waiting: &Waiting,
        desk: &mut Desk,
    ) -> Result<(), SessionError> {
        let (id, wanted) = decode(&waiting.frame)?;
        let answer = self.work(self.lock(), wanted, desk);
        let (table, answer) = self.settle(answer);
        drop(table);
        Ok(self.send_and_finish(name, id, answer, desk)?)
    }
}
