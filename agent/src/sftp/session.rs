//! A session: frames in, replies out, on threads of its own.
//!
//! One thread at a time is the *leader*: it has the [`Input`], reads a request, does it, and
//! replies, without handing anything to anybody. While it does a request it leaves the input on
//! the table. A *watcher* looks at the table while there is work, and takes the input of a leader
//! that is late: it leads from then on, and the late one sends its reply whenever it has it. So
//! what is quick runs as in a serial server, and what is slow delays only itself and what must
//! come after it ([`super::order`]).
//!
//! ```text
//!            reads, does, replies          late: the watcher takes the input
//! leader ◄──────────────────────► leader ────────────────────────────────► works on
//!    ▲                                                                        │ done
//!    └── takes the input of a late one ── watcher ◄── spare ◄─────────────────┘
//!                                                       └─ not needed: ends
//! ```
//!
//! The data of large WRITEs are written by another thread than the one that reads them ([`land`]).
//!
//! Whatever is wrong with the stream itself, a read error, an over-long frame, an end in the
//! middle of one, ends the session: what follows could not be told from the contents of a file.
//! What is wrong with one request is answered with its id.

mod desk;
mod land;
mod lead;
mod pool;

use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use vsock_agent_protocol::sftp::{
    DecodeError, Reply, Request, SessionOptions, VERSION,
    extension::{OpenedPart, SESSION},
};

use self::land::Landings;

pub(super) use self::desk::Desk;
use super::{
    SftpError,
    extension::ADVERTISED,
    files::{Done, Files},
    handles::Handles,
    input::Input,
    order::Order,
    request::{Wanted, decode},
    stream::{Channel, Closer, Outgoing, Sink},
    tree::Tree,
};
use crate::defaults;

/// Stack of a thread, in bytes: the deepest calls hash, and take more than half of it where the
/// compiler does not optimise. What is not used costs no memory.
const STACK_BYTES: usize = 1024 * 1024;

/// Why a session ended before its client wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client does not speak SFTP")]
    Decode(#[from] DecodeError),
    #[error("the client did not start with INIT")]
    NoInit,
    #[error("a thread panicked")]
    Panic,
}

/// Bytes of requests that wait, in all sessions together.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicUsize);

/// A running session. It goes on without this; [`Session::stop`] ends it.
#[derive(Debug, Clone)]
pub(crate) struct Session(Arc<Shared>);

/// What the threads of a session share.
#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Tells the watcher that there is something to watch.
    watch: Condvar,
    /// Tells a spare thread that there is something to do.
    wake: Condvar,
    /// Tells the leader that fewer requests wait, or land.
    room: Condvar,
    sink: Mutex<Sink>,
    closer: Closer,
    /// Whether pages of files are lent to the connection.
    lends: bool,
    files: Files,
    options: SessionOptions,
    budget: Arc<Budget>,
    over: Mutex<Option<oneshot::Sender<Option<SessionError>>>>,
    /// A place among the sessions, given up when the last thread is gone.
    _permit: Option<OwnedSemaphorePermit>,
}

/// What the threads agree on. Nobody waits for anything outside while holding it.
#[derive(Debug, Default)]
struct Table {
    /// The input, while the leader does a request.
    input: Option<Box<Input>>,
    /// Counts the leaders' requests: whether the input on the table is still one's own.
    turn: u64,
    order: Order<Waiting>,
    /// Replies that a leader had gathered when its input was taken, and those of what has landed:
    /// they go out before any other.
    owed: BytesMut,
    waiting_bytes: usize,
    landings: Landings,
    handles: Handles,
    threads: usize,
    spares: usize,
    /// Of those, how many are to come and have not woken yet.
    called: usize,
    watched: bool,
    /// Whether the watcher sleeps until it is told.
    asleep: bool,
    ended: bool,
}

/// A request that waits for others.
#[derive(Debug)]
struct Waiting {
    frame: Box<[u8]>,
}

/// What is to be sent.
#[derive(Debug)]
enum Answer {
    Reply(Reply),
    /// So many bytes on the desk.
    Data(usize),
}

/// How a session is made.
#[derive(Debug)]
pub(crate) struct Setup {
    tree: Tree,
    options: SessionOptions,
    budget: Arc<Budget>,
}

impl Setup {
    /// A session as `options` says, but for its user. Relative paths start at `home`, if all paths
    /// do not start at the root that was asked for.
    ///
    /// # Errors
    ///
    /// When that directory cannot be used; `ENOSYS` when the kernel cannot keep a session in it.
    pub(crate) fn new(
        options: SessionOptions,
        home: &Path,
        budget: Arc<Budget>,
    ) -> io::Result<Self> {
        Ok(Self {
            tree: match &options.root {
                Some(root) => Tree::beneath(Path::new(root))?,
                None => Tree::whole(home)?,
            },
            options,
            budget,
        })
    }
}

impl Session {
    /// Serves one client until it closes the connection; all its files are closed then. `read_ahead`
    /// came before what the channel gives. `permit` is kept until the last thread is gone. The
    /// receiver hears of the end, and why.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(crate) fn start(
        channel: Channel,
        read_ahead: &[u8],
        setup: Setup,
        permit: Option<OwnedSemaphorePermit>,
    ) -> io::Result<(Self, oneshot::Receiver<Option<SessionError>>)> {
        let (over, is_over) = oneshot::channel();
        let lends = channel.lends();
        let input = Box::new(Input::new(channel.source, read_ahead));
        let shared = Arc::new(Shared {
            table: Mutex::default(),
            watch: Condvar::new(),
            wake: Condvar::new(),
            room: Condvar::new(),
            lends,
            sink: Mutex::new(channel.sink),
            closer: channel.closer,
            files: Files {
                tree: setup.tree,
                read_only: setup.options.read_only,
                ended: AtomicBool::new(false),
            },
            options: setup.options,
            budget: setup.budget,
            over: Mutex::new(Some(over)),
            _permit: permit,
        });
        let mut table = shared.lock();
        shared.spawn(&mut table, |shared| shared.begin(input))?;
        drop(table);
        Ok((Self(shared), is_over))
    }

    /// Ends the session. Blocks while files are closed.
    pub(crate) fn stop(&self) {
        self.0.end(None);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    fn spawn(
        self: &Arc<Self>,
        table: &mut Table,
        life: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("sftp".to_owned());
        thread
            .stack_size(STACK_BYTES)
            .spawn(move || life(&shared))?;
        table.threads += 1;
        Ok(())
    }

    /// The first thread: answers INIT, and leads.
    fn begin(self: &Arc<Self>, mut input: Box<Input>) {
        match self.greet(&mut input) {
            Ok(true) => self.live(Some(input)),
            Ok(false) => self.end(None),
            Err(error) => self.end(Some(error)),
        }
    }

    /// False when the client has gone without a word.
    fn greet(&self, input: &mut Input) -> Result<bool, SessionError> {
        let Some(first) = input.next_frame(&self.sink)? else {
            return Ok(false);
        };
        match Request::decode(Bytes::copy_from_slice(&first))? {
            (_, Request::Init { version }) => {
                greeting(version, &self.options).encode(0, &mut input.replies);
                // Nothing may come before it, also not the reply of one who was late.
                input.flush(&self.sink)?;
                Ok(true)
            }
            _ => Err(SessionError::NoInit),
        }
    }

    /// Does one request, without the table.
    fn work(
        &self,
        mut table: MutexGuard<'_, Table>,
        wanted: Wanted<'_>,
        desk: &mut Desk,
    ) -> Result<Done, (SftpError, bool)> {
        let opens = wanted.opens();
        let bound = wanted.bind(&mut table.handles);
        drop(table);
        let bound = bound.map_err(|error| (error, false))?;
        self.files
            .attempt(wanted, bound, desk)
            .map_err(|error| (error, opens))
    }

    /// Gives a handle to what was opened.
    fn settle(&self, done: Result<Done, (SftpError, bool)>) -> (MutexGuard<'_, Table>, Answer) {
        let mut table = self.lock();
        let answer = match done {
            Ok(Done::Reply(reply)) => Answer::Reply(reply),
            Ok(Done::Data(length)) => Answer::Data(length),
            Ok(Done::Opened(open)) => Answer::Reply(Reply::Handle {
                handle: table.handles.insert(open),
            }),
            Ok(Done::OpenedPart(part)) => {
                let opened = OpenedPart {
                    handle: table.handles.insert(part.open),
                    name: part.name,
                    length: part.length,
                };
                Answer::Reply(Reply::Extended {
                    data: opened.encode(),
                })
            }
            Err((error, kept_place)) => {
                if kept_place {
                    table.handles.free_place();
                }
                Answer::Reply(error.into())
            }
        };
        (table, answer)
    }

    /// Sends the reply of one who is no leader, and lets those start that wait for it: so their
    /// replies come after it.
    fn send_and_finish(
        &self,
        name: u64,
        id: u32,
        answer: Answer,
        desk: &mut Desk,
    ) -> io::Result<()> {
        let sent = self.send(id, answer, desk);
        self.lock().order.finish(name);
        self.room.notify_all();
        sent
    }

    /// Sends what was owed, and `frame` after it.
    fn send_owed_and(&self, frame: Outgoing<'_>) -> io::Result<()> {
        let mut sink = lock(&self.sink);
        let owed = std::mem::take(&mut self.lock().owed);
        sink.write(&owed, frame)
    }

    fn send(&self, id: u32, answer: Answer, desk: &mut Desk) -> io::Result<()> {
        let mut replies = BytesMut::new();
        let frame = match answer {
            Answer::Reply(reply) => {
                reply.encode(id, &mut replies);
                Outgoing::from(&replies[..])
            }
            Answer::Data(length) => desk.frame(id, length),
        };
        self.send_owed_and(frame)
    }

    /// Ends the session, the first time it is called. Files are closed, except those that somebody
    /// still works on, which are when that is done.
    fn end(&self, error: Option<SessionError>) {
        let mut table = self.lock();
        if std::mem::replace(&mut table.ended, true) {
            return;
        }
        self.budget
            .give_back(std::mem::take(&mut table.waiting_bytes));
        table.order.forget_waiting();
        let landings = table.landings.forget();
        let handles = std::mem::take(&mut table.handles);
        let input = table.input.take();
        drop(table);
        self.files.ended.store(true, Ordering::Relaxed);
        for condition in [&self.watch, &self.wake, &self.room] {
            condition.notify_all();
        }
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.say_goodbye();
        }
        self.closer.hang_up();
        // Closing may wait for a file system.
        drop((handles, landings, input));
        if let Some(over) = lock(&self.over).take() {
            let _ = over.send(error);
        }
    }
}

impl Budget {
    fn take(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_spent(&self) -> bool {
        self.0.load(Ordering::Relaxed) > defaults::MAX_SFTP_WAITING_BYTES
    }
}

/// Nothing panics while holding a lock here; if something did, what it protects is still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn greeting(client: u32, options: &SessionOptions) -> Reply {
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    let known = ADVERTISED.iter();
    let mut extensions: Vec<_> = known
        .map(|(name, version)| (text(name), text(version)))
        .collect();
    if !options.is_default() {
        extensions.push((text(SESSION), options.to_query().into()));
    }
    Reply::Version {
        version: VERSION.min(client),
        extensions,
    }
}
