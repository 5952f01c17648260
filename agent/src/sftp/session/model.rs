//! A model check of [`super::followers`] with loom. Its source is compiled here once more, with loom's
//! locks. Loom runs each test in all orders of its threads that take at most [`PREEMPTIONS`]
//! preemptions, and fails when all threads wait.

#[path = "followers.rs"]
#[expect(
    clippy::duplicate_mod,
    reason = "with other locks it is another module"
)]
mod followers;

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    ops::{Deref, DerefMut},
    sync::{Arc, LockResult, Mutex as StdMutex},
    time::Duration,
};

use bytes::Bytes;
use loom::{sync as checked, thread};

use self::followers::{Followers, Limits, Role, SessionIo, Start};
use super::write_behind;
use crate::sftp::{
    access::{
        AccessSet,
        tests::{all, read, write},
    },
    output::lock,
};

const PREEMPTIONS: usize = 2;

/// A wait that is at least so long does not time out.
const NEVER: Duration = Duration::from_secs(5);

thread_local! {
    /// How many waits still time out, at once. Loom runs all threads of a model on one.
    static TIMEOUTS: Cell<usize> = const { Cell::new(0) };
}

/// As `std`'s, for [`followers`].
#[derive(Debug)]
struct Mutex<T>(checked::Mutex<T>);

struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: checked::MutexGuard<'a, T>,
}

#[derive(Debug)]
struct Condvar(checked::Condvar);

struct Waited(bool);

impl<T> Mutex<T> {
    fn new(value: T) -> Self {
        Self(checked::Mutex::new(value))
    }

    fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(self.guard(self.0.lock().unwrap()))
    }

    fn guard<'a>(&'a self, guard: checked::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        MutexGuard { mutex: self, guard }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl Condvar {
    fn new() -> Self {
        Self(checked::Condvar::new())
    }

    fn notify_one(&self) {
        self.0.notify_one();
    }

    fn notify_all(&self) {
        self.0.notify_all();
    }

    fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        Ok(guard.mutex.guard(self.0.wait(guard.guard).unwrap()))
    }

    fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        limit: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, Waited)> {
        let left = TIMEOUTS.get();
        if left == 0 || limit >= NEVER {
            return Ok((self.wait(guard).unwrap(), Waited(false)));
        }
        TIMEOUTS.set(left - 1);
        let mutex = guard.mutex;
        drop(guard);
        Ok((mutex.lock().unwrap(), Waited(true)))
    }

    fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        limit: Duration,
        condition: impl Fn(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, Waited)> {
        while condition(&mut guard) {
            let waited;
            (guard, waited) = self.wait_timeout(guard, limit)?;
            if waited.timed_out() {
                return Ok((guard, waited));
            }
        }
        Ok((guard, Waited(false)))
    }
}

impl Waited {
    fn timed_out(&self) -> bool {
        self.0
    }
}

/// A request: its number, from 0 in the order of arrival.
#[derive(Debug, Clone)]
struct Request {
    number: usize,
    access: AccessSet,
    /// The handle, if it is a WRITE that may be written behind.
    behind: Option<Bytes>,
    /// Whether it ends only after the one behind it has run, as a READ of a pipe may.
    blocks: bool,
}

impl AsRef<[u8]> for Request {
    fn as_ref(&self) -> &[u8] {
        b"frame"
    }
}

/// A session without files and connection.
struct Model {
    followers: Followers<VecDeque<Request>, Request, (u64, Request)>,
    log: StdMutex<Log>,
    /// Wakes a request that blocks.
    ran: (checked::Mutex<Vec<usize>>, checked::Condvar),
    requests: Vec<Request>,
}

#[derive(Default)]
struct Log {
    /// Threads that can still be started.
    spare: usize,
    running: Vec<usize>,
    gathered: Vec<usize>,
    sent: Vec<usize>,
    ended: bool,
}

impl Model {
    fn run_thread(self: &Arc<Self>, mut role: Role<VecDeque<Request>, Request>) {
        loop {
            match role {
                Role::Lead(input) => self.lead(input),
                Role::Run(ticket, request) => {
                    self.run(&request);
                    self.send(&request);
                    self.followers.finish(ticket);
                }
                Role::WriteBehind => self.write_queued(),
                Role::Exit => return,
            }
            role = self.followers.next_role(self);
        }
    }

    fn lead(self: &Arc<Self>, mut input: VecDeque<Request>) {
        self.followers.need_watcher(self);
        self.flush();
        while let Some(request) = input.pop_front() {
            let kept = if request.behind.is_some() {
                self.queue_write(input, request)
            } else {
                self.start(input, request)
            };
            match kept {
                Some(kept) => input = kept,
                None => return,
            }
        }
        self.flush();
        self.followers.drain(self);
        self.end_session();
    }

    fn start(
        self: &Arc<Self>,
        input: VecDeque<Request>,
        request: Request,
    ) -> Option<VecDeque<Request>> {
        let waiting = || request.clone();
        match self.followers.start(request.access.clone(), input, waiting) {
            Start::Ended => None,
            Start::Waits(input) => {
                if self.followers.is_full() {
                    self.flush();
                    self.followers.wait_for_room(self).unwrap();
                }
                Some(input)
            }
            Start::Runs { turn, ticket } => {
                self.run(&request);
                let input = self.followers.reclaim(turn, Some(ticket));
                if input.is_some() {
                    self.gather(&request);
                } else {
                    self.send(&request);
                    self.followers.finish(ticket);
                }
                input
            }
        }
    }

    fn queue_write(
        self: &Arc<Self>,
        input: VecDeque<Request>,
        request: Request,
    ) -> Option<VecDeque<Request>> {
        let handle = request.behind.as_ref().unwrap();
        let reserved = self.followers.reserve_write(handle, request.access.clone());
        let Some((ticket, _)) = reserved else {
            return self.start(input, request);
        };
        if self.followers.queue_write((ticket, request), self) {
            return Some(input);
        }
        let turn = self.followers.offer(input);
        self.write_queued();
        self.followers.reclaim(turn, None)
    }

    fn write_queued(self: &Arc<Self>) {
        while let Some((ticket, request)) = self.followers.next_write() {
            self.run(&request);
            self.gather(&request);
            if !self.followers.finish_write(ticket, Vec::new(), self) {
                self.flush();
            }
        }
    }

    /// Runs a request: none that it conflicts with may run, or have arrived before and wait.
    fn run(&self, request: &Request) {
        {
            let mut log = lock(&self.log);
            let answered: Vec<_> = [&log.gathered[..], &log.sent[..]].concat();
            for other in &self.requests {
                let conflicts =
                    other.number != request.number && other.access.conflicts(&request.access);
                if conflicts {
                    assert!(!log.running.contains(&other.number), "at the same time");
                    let is_done = answered.contains(&other.number);
                    assert_eq!(is_done, other.number < request.number, "out of order");
                }
            }
            log.running.push(request.number);
        }
        let (ran, condition) = &self.ran;
        let mut ran = ran.lock().unwrap();
        while request.blocks && !ran.contains(&(request.number + 1)) {
            ran = condition.wait(ran).unwrap();
        }
        ran.push(request.number);
        condition.notify_all();
    }

    fn gather(&self, request: &Request) {
        // Another thread may run before.
        drop(self.ran.0.lock());
        let mut log = lock(&self.log);
        log.running.retain(|number| *number != request.number);
        log.gathered.push(request.number);
    }

    fn send(self: &Arc<Self>, request: &Request) {
        self.gather(request);
        self.flush();
    }
}

impl SessionIo for Arc<Model> {
    fn spawn(&self) -> io::Result<()> {
        let mut log = lock(&self.log);
        let Some(left) = log.spare.checked_sub(1) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        log.spare = left;
        drop(log);
        let model = Self::clone(self);
        thread::spawn(move || model.run_thread(model.followers.next_role(&model)));
        Ok(())
    }

    fn flush(&self) {
        let mut log = lock(&self.log);
        assert!(
            !log.ended || log.gathered.is_empty(),
            "a reply after the end"
        );
        let mut gathered = std::mem::take(&mut log.gathered);
        log.sent.append(&mut gathered);
    }

    fn is_hung_up(&self) -> bool {
        false
    }

    fn end_session(&self) {
        if self.followers.end().is_some() {
            let mut log = lock(&self.log);
            log.ended = true;
            assert_eq!(log.sent.len(), self.requests.len(), "all are answered");
        }
    }
}

/// What a request does besides running.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Behind,
    Blocks,
}

/// Runs these requests, with so many threads beside the first one, and checks that all are answered
/// before the session ends, and that all threads exit.
fn check<const N: usize>(spare: usize, requests: [(AccessSet, Kind); N]) {
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = Some(PREEMPTIONS);
    loom.check(move || {
        TIMEOUTS.set(N + spare);
        let requests = requests.iter().enumerate();
        let requests: Vec<_> = requests
            .map(|(number, (access, kind))| Request {
                number,
                access: access.clone(),
                behind: (*kind == Kind::Behind).then(|| Bytes::from_static(b"handle")),
                blocks: *kind == Kind::Blocks,
            })
            .collect();
        let limits = Limits {
            workers: 2,
            idle_looks: 1,
        };
        let model = Arc::new(Model {
            followers: Followers::new(limits, Arc::default()),
            log: StdMutex::new(Log {
                spare,
                ..Log::default()
            }),
            ran: (checked::Mutex::new(Vec::new()), checked::Condvar::new()),
            requests: requests.clone(),
        });
        model.run_thread(Role::Lead(requests.into()));
    });
}

#[test]
fn the_watcher_leads_when_a_request_is_late() {
    for spare in [1, 2] {
        check(
            spare,
            [(read(1, 0), Kind::Blocks), (read(2, 0), Kind::Plain)],
        );
    }
}

#[test]
fn requests_that_conflict_are_answered_in_their_order_by_any_threads() {
    check(
        2,
        [
            (write(1, 0), Kind::Plain),
            (all(1), Kind::Plain),
            (read(2, 0), Kind::Plain),
        ],
    );
}

#[test]
fn close_waits_for_writes_that_are_queued() {
    check(
        2,
        [
            (write(1, 0), Kind::Behind),
            (write(1, 10), Kind::Behind),
            (all(1), Kind::Plain),
        ],
    );
}

#[test]
fn without_another_thread_the_leader_does_everything() {
    for spare in [0, 1] {
        check(
            spare,
            [
                (write(1, 0), Kind::Behind),
                (all(1), Kind::Plain),
                (read(2, 0), Kind::Plain),
            ],
        );
    }
}

#[test]
fn a_former_leader_leaves_the_input_to_the_next_one() {
    check(
        2,
        [
            (write(1, 0), Kind::Blocks),
            (read(2, 0), Kind::Plain),
            (all(1), Kind::Plain),
            (read(3, 0), Kind::Plain),
        ],
    );
}
