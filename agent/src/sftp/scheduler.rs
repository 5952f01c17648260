//! Decides which requests of a session may run at the same time. Starts no threads.
//!
//! draft-ietf-secsh-filexfer, section 4.1 of its versions after 02: requests for the same file have
//! the results that they would have one at a time. So parts of one open file that
//! overlap keep their order if one of them is written, writes to one file keep theirs in any case,
//! closing waits for everything before it, and a path keeps its order with a change of it, above it,
//! or directly in it.

use std::collections::VecDeque;

use super::access::AccessSet;
use crate::defaults;

/// The requests that run, and those that wait, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Scheduler<J> {
    running: Vec<Running>,
    waiting: VecDeque<(AccessSet, J)>,
    last: u64,
}

/// A request that runs.
#[derive(Debug)]
struct Running {
    ticket: u64,
    access: AccessSet,
    /// Whether it is a queued write: one thread runs them, one after the other.
    write_behind: bool,
}

impl<J> Default for Scheduler<J> {
    fn default() -> Self {
        Self {
            running: Vec::new(),
            waiting: VecDeque::new(),
            last: 0,
        }
    }
}

impl<J> Scheduler<J> {
    /// Whether a request that has just arrived may run.
    pub(super) fn may_start(&self, access: &AccessSet) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
            || self.is_free(access, self.waiting.len())
    }

    /// Whether `access` conflicts neither with what runs nor with the first `ahead` that wait, and
    /// uses no handle that has [`defaults::MAX_SFTP_WORKERS_OF_HANDLE`] threads: a device that hangs
    /// must not take all threads of the session.
    fn is_free(&self, access: &AccessSet, ahead: usize) -> bool {
        let waiting = || self.waiting.iter().take(ahead).map(|(access, _)| access);
        let mut all = self.running.iter().map(|one| &one.access).chain(waiting());
        let crowded = |handle| {
            let running = self.running.iter().filter(|one| !one.write_behind);
            let using = running.filter(|one| one.access.uses(handle)).count();
            using >= defaults::MAX_SFTP_WORKERS_OF_HANDLE
        };
        !all.any(|other| access.conflicts(other)) && !access.handles().any(crowded)
    }

    /// Whether a WRITE that has just arrived may be queued: it conflicts with queued writes only.
    pub(super) fn may_write_behind(&self, access: &AccessSet) -> bool {
        let running = self.running.iter().filter(|one| !one.write_behind);
        let waiting = self.waiting.iter().map(|(access, _)| access);
        let mut all = running.map(|one| &one.access).chain(waiting);
        !all.any(|other| access.conflicts(other))
    }

    /// Adds a running request. Returns its ticket for [`Scheduler::finish`].
    pub(super) fn start(&mut self, access: AccessSet) -> u64 {
        self.add(access, false)
    }

    /// The same for a queued write.
    pub(super) fn start_write_behind(&mut self, access: AccessSet) -> u64 {
        self.add(access, true)
    }

    fn add(&mut self, access: AccessSet, write_behind: bool) -> u64 {
        self.last += 1;
        self.running.push(Running {
            ticket: self.last,
            access,
            write_behind,
        });
        self.last
    }

    /// Removes a request that is done.
    pub(super) fn finish(&mut self, ticket: u64) {
        self.running.retain(|one| one.ticket != ticket);
    }

    /// How many threads run requests.
    pub(super) fn running(&self) -> usize {
        let all = self.running.len();
        let queued = self.running.iter().filter(|one| one.write_behind).count();
        all - queued + queued.min(1)
    }

    /// Puts a request behind those it must wait for.
    pub(super) fn wait(&mut self, access: AccessSet, job: J) {
        self.waiting.push_back((access, job));
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one of those that wait may run now.
    pub(super) fn has_ready(&self) -> bool {
        self.ready().is_some()
    }

    /// Starts the first of those that wait and may run now.
    pub(super) fn start_ready(&mut self) -> Option<(u64, J)> {
        let (access, job) = self.waiting.remove(self.ready()?)?;
        Some((self.start(access), job))
    }

    /// Those that wait.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &J> {
        self.waiting.iter().map(|(_, job)| job)
    }

    /// Removes those that wait.
    pub(super) fn take_waiting(&mut self) -> Vec<J> {
        self.waiting.drain(..).map(|(_, job)| job).collect()
    }

    fn ready(&self) -> Option<usize> {
        let mut waiting = self.waiting.iter().enumerate();
        waiting
            .find(|(index, (access, _))| self.is_free(access, *index))
            .map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::access::tests::{all, read, write},
        *,
    };

    #[test]
    fn a_request_does_not_overtake_one_it_conflicts_with() {
        let mut scheduler = Scheduler::default();
        let slow = scheduler.start(read(1, 0));
        assert!(scheduler.may_start(&read(1, 0)));
        assert!(!scheduler.may_start(&all(1)));
        scheduler.wait(all(1), "close");
        assert!(!scheduler.may_start(&read(1, 0)), "it came after the close");
        scheduler.wait(read(1, 0), "read");
        assert!(scheduler.may_start(&read(2, 0)));
        assert!(!scheduler.has_ready());
        scheduler.finish(slow);
        let (close, job) = scheduler.start_ready().unwrap();
        assert_eq!(job, "close");
        assert!(scheduler.start_ready().is_none());
        scheduler.finish(close);
        assert_eq!(scheduler.start_ready().unwrap().1, "read");
        assert_eq!((scheduler.running(), scheduler.waiting()), (1, 0));
    }

    #[test]
    fn one_handle_does_not_get_every_thread() {
        let mut scheduler = Scheduler::<()>::default();
        for start in 0..defaults::MAX_SFTP_WORKERS_OF_HANDLE {
            assert!(scheduler.may_start(&read(1, 0)), "{start}");
            scheduler.start(read(1, 0));
        }
        assert!(!scheduler.may_start(&read(1, 0)));
        assert!(scheduler.may_start(&read(2, 0)));
    }

    #[test]
    fn a_queued_write_waits_for_queued_writes_only() {
        let mut scheduler = Scheduler::default();
        let first = scheduler.start_write_behind(write(1, 0));
        assert!(!scheduler.may_start(&write(1, 10)));
        assert!(scheduler.may_write_behind(&write(1, 10)));
        let second = scheduler.start_write_behind(write(1, 10));
        assert_eq!(scheduler.running(), 1, "one thread does them");
        assert!(scheduler.may_start(&read(1, 20)));
        scheduler.wait(read(1, 10), "read");
        assert!(scheduler.may_write_behind(&write(1, 20)));
        assert!(
            !scheduler.may_write_behind(&write(1, 10)),
            "the read came before it"
        );
        scheduler.finish(first);
        assert!(!scheduler.has_ready());
        scheduler.finish(second);
        assert_eq!(scheduler.start_ready().unwrap().1, "read");
        assert!(
            !scheduler.may_write_behind(&write(1, 10)),
            "it is being read"
        );
    }
}
