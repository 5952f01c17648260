//! Landing: the data of large WRITEs, which the leader reads and another thread writes, so that a
//! copy into a file has two processors.
//!
//! ```text
//! leader ──reads──► buffer, one of a few ──► lander ──writes──► file
//!    ▲                                         │ └──► reply
//!    └───────────────── free ◄─────────────────┘
//! ```
//!
//! WRITEs land one after the other, and those of one open file at a time only: so what lands needs no
//! order but that of the queue, and a slow file does not keep another one waiting.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use vsock_agent_protocol::sftp::MAX_DATA_BYTES;

use super::{
    super::{
        SftpError,
        files::{Done, write},
        handles::Open,
        input::Begun,
        ok,
        stream::Outgoing,
    },
    Answer, Budget, SessionError, Shared, Table,
};

/// Buffers of a session. With fewer, leader and lander wait for each other: with six, a push of 1 GiB
/// took 6 % longer.
const BUFFERS: usize = 8;

/// Replies that are sent at once while more is to land. To be woken for several leaves the client
/// more of its processor.
const GATHERED: usize = 4;

/// How long the leader waits for a free buffer: what takes longer is slow, and waits with the other
/// requests that are.
const BUFFER_TIMEOUT: Duration = Duration::from_millis(4);

/// How long one request may take when the client has said that no more come.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// The same when it is gone, and nothing lands: what takes longer is not to go on for nobody.
const GONE_TIMEOUT: Duration = Duration::from_secs(1);

/// The WRITEs of a session that land.
#[derive(Debug, Default)]
pub(super) struct Landings {
    queue: VecDeque<Landing>,
    lander: Lander,
    /// How many have begun and are not done.
    begun: usize,
    /// What they all write to.
    handle: Bytes,
    /// Whether the leader has waited in vain since one was done.
    slow: bool,
    free: Vec<Vec<u8>>,
}

/// Whether a thread sees to the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Lander {
    #[default]
    None,
    /// Somebody is to come.
    Called,
    Here,
}

/// A WRITE that lands.
#[derive(Debug)]
pub(super) struct Landing {
    name: u64,
    id: u32,
    open: Arc<Open>,
    offset: u64,
    buffer: Buffer,
}

/// Its data. Counts as memory of a request that waits.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    budget: Arc<Budget>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.budget.give_back(MAX_DATA_BYTES as usize);
    }
}

impl Landings {
    /// Whether somebody is to come and see to the queue.
    pub(super) fn calls(&self) -> bool {
        self.lander == Lander::Called
    }

    /// Answers the call, if there is one: who does has to [land all](Shared::land_all).
    pub(super) fn answer_call(&mut self) -> bool {
        let calls = self.calls();
        if calls {
            self.lander = Lander::Here;
        }
        calls
    }

    /// Forgets buffers that nobody uses.
    pub(super) fn tidy(&mut self) {
        self.free = Vec::new();
    }

    /// Forgets what is not being written yet.
    pub(super) fn forget(&mut self) -> VecDeque<Landing> {
        std::mem::take(&mut self.queue)
    }

    fn serves(&self, handle: &Bytes) -> bool {
        self.begun == 0 || self.handle == handle
    }

    fn is_full(&self) -> bool {
        self.begun >= BUFFERS
    }

    fn done(&mut self, mut buffer: Buffer) {
        self.begun -= 1;
        self.slow = false;
        self.free.push(std::mem::take(&mut buffer.bytes));
    }
}

impl Landing {
    /// Where its data go.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes[..self.buffer.length]
    }

    fn write(&self) -> Result<Done, (SftpError, bool)> {
        let data = &self.buffer.bytes[..self.buffer.length];
        match write(&self.open, self.offset, data) {
            Ok(()) => Ok(Done::Reply(ok())),
            Err(error) => Err((error, false)),
        }
    }
}

impl Shared {
    /// A place for a WRITE that has begun, if it may land now. Waits a moment for a free buffer.
    pub(super) fn begin_landing(&self, begun: &Begun) -> Option<Landing> {
        let length = usize::try_from(begun.length).ok()?;
        if self.files.read_only || length > MAX_DATA_BYTES as usize {
            return None;
        }
        let mut table = self.lock();
        if table.landings.is_full() && table.landings.serves(&begun.handle) {
            table = self.wait_for_buffer(table);
        }
        let landings = &table.landings;
        if table.ended || landings.is_full() || !landings.serves(&begun.handle) {
            return None;
        }
        if self.budget.is_spent() && landings.begun > 0 {
            return None;
        }
        let open = table.handles.find(&begun.handle).ok()?;
        let claim = begun.claim(&table.handles);
        if open.plain_file().is_none() || !table.order.may_land(&claim) {
            return None;
        }
        let name = table.order.start_landing(claim);
        table.landings.begun += 1;
        table.landings.handle = begun.handle.clone();
        let free = table.landings.free.pop();
        drop(table);
        self.budget.take(MAX_DATA_BYTES as usize);
        Some(Landing {
            name,
            id: begun.id,
            open,
            offset: begun.offset,
            buffer: Buffer {
                bytes: free.unwrap_or_else(|| vec![0; MAX_DATA_BYTES as usize]),
                length,
                budget: Arc::clone(&self.budget),
            },
        })
    }

    /// Has another thread write what was read. False if there is none: whoever called this is the
    /// lander then, and has to [land all](Self::land_all).
    pub(super) fn hand_over(self: &Arc<Self>, landing: Landing) -> bool {
        let mut table = self.lock();
        table.landings.queue.push_back(landing);
        if table.landings.lander != Lander::None {
            return true;
        }
        let helped = self.call_help(&mut table);
        table.landings.lander = if helped { Lander::Called } else { Lander::Here };
        helped
    }

    /// Forgets one whose data did not come.
    pub(super) fn abandon(&self, landing: Landing) {
        let mut table = self.lock();
        table.landings.done(landing.buffer);
        table.order.finish(landing.name);
    }

    /// Writes what is to land, until there is nothing more.
    pub(super) fn land_all(self: &Arc<Self>) -> Result<(), SessionError> {
        let mut table = self.lock();
        let mut result = Ok(());
        let mut owed = 0;
        while let Some(landing) = table.landings.queue.pop_front() {
            drop(table);
            self.land(landing);
            owed += 1;
            table = self.lock();
            if owed == GATHERED || table.landings.queue.is_empty() {
                drop(table);
                // What has come whole is written, also when nobody hears of it any more.
                result = result.and(self.send_owed_and(Outgoing::EMPTY));
                owed = 0;
                table = self.lock();
            }
        }
        table.landings.lander = Lander::None;
        self.room.notify_all();
        Ok(result?)
    }

    /// Writes, and leaves the reply with those that go out before any other.
    fn land(self: &Arc<Self>, landing: Landing) {
        let done = landing.write();
        let Landing {
            name,
            id,
            open,
            buffer,
            ..
        } = landing;
        // Who closes the file is to be the last who uses it.
        drop(open);
        let (mut table, answer) = self.settle(done);
        if let Answer::Reply(reply) = answer {
            reply.encode(id, &mut table.owed);
        }
        table.landings.done(buffer);
        table.order.finish(name);
        self.room.notify_all();
        if table.order.has_ready() {
            self.call_help(&mut table);
        }
    }

    /// Waits until all that has come whole is done and answered, or the session has ended. Does not
    /// wait for a file that hangs.
    pub(super) fn wait_for_the_rest(&self) {
        let mut table = self.lock();
        let left = |table: &Table| (table.order.waiting(), table.order.running());
        while !table.ended && (left(&table) != (0, 0) || table.landings.lander != Lander::None) {
            let before = left(&table);
            let limit = if table.landings.begun == 0 && self.closer.is_hung_up() {
                GONE_TIMEOUT
            } else {
                REST_TIMEOUT
            };
            let waited = self.room.wait_timeout(table, limit);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            table = woken;
            if timeout.timed_out() && left(&table) == before {
                return;
            }
        }
    }

    fn wait_for_buffer<'a>(&self, mut table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        if table.landings.slow {
            return table;
        }
        let full = |table: &mut Table| table.landings.is_full() && !table.ended;
        let waited = self.room.wait_timeout_while(table, BUFFER_TIMEOUT, full);
        table = waited.unwrap_or_else(PoisonError::into_inner).0;
        table.landings.slow = table.landings.is_full();
        table
    }
}
