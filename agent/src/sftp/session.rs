//! An SFTP session: requests in, replies out, on threads of its own.
//!
//! The threads follow the Leader/Followers pattern. The *leader* owns the [`Input`]: it reads a
//! request, runs it, and replies, without handing it to another thread. While it runs a request, it
//! leaves the input in the [`State`]. One follower, the *watcher*, looks at the state while there is
//! work. If the leader is late, the watcher takes the input and becomes the leader; the former one
//! replies when it is done. So fast requests run as in a serial server, and a slow one delays only
//! itself and the requests that must come after it ([`super::scheduler`]).
//!
//! ```text
//!         reads, runs, replies           late: the watcher takes the input
//! leader ◄────────────────────► leader ─────────────────────────────────────► still running
//!    ▲                                                                             │ done
//!    └── takes the input of a late leader ── watcher ◄── idle follower ◄───────────┘
//!                                                              └─ not needed: exits
//! ```
//!
//! The data of large WRITEs are written by another thread than the one that reads them
//! ([`write_behind`]). The limits that one WRITE passes, in order:
//!
//! ```text
//! frame             at most MAX_FRAME_BYTES, else the session ends
//!   │ at least MIN_WRITE_BEHIND_BYTES of it not read yet?   no ──────────────────────┐
//!   ▼                                                                                │
//! write-behind      no more than MAX_DATA_BYTES, session may write, file with        │
//!   │               offsets, the same file as the queue, no conflict with requests   │
//!   │               outside the queue                       no ──► frame is read ────┤
//!   │ a free one of BUFFERS within BUFFER_TIMEOUT; with a   no ──► frame is read ────┤
//!   │ queue also: Budget (MAX_SFTP_WAITING_BYTES, all sessions)                      │
//!   ▼                                                                                ▼
//! queued, written by one thread                                                  scheduler
//!                                                            no conflict, handle  │  │ else
//!                     run by the leader, or later by one of  ◄────────────────────┘  ▼
//!                     MAX_SFTP_WORKERS; of them              ◄──────────────────  waits
//!                     MAX_SFTP_WORKERS_OF_HANDLE per handle                          │
//!                                        leader stops reading at MAX_SFTP_WAITING requests,
//!                                        MAX_SFTP_SESSION_WAITING_BYTES, or a spent Budget
//! ```
//!
//! An error of the stream itself (a read error, a frame that is too long, an end inside a frame) ends
//! the session, because what follows cannot be told from the contents of a file. An error of one
//! request is answered with its id.

mod followers;
mod leader;
mod write_behind;

use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use vsock_agent_protocol::sftp::{
    Reply, Request, SessionOptions, VERSION,
    extension::{OpenedPart, SESSION},
};

use self::{followers::Followers, write_behind::WriteBehind};
use super::{
    SessionError, SftpError,
    extension::ADVERTISED,
    files::{Files, Outcome},
    handles::Handles,
    input::Input,
    read_buffer::ReadBuffer,
    request::{ParsedRequest, decode},
    scheduler::Scheduler,
    stream::{Channel, Closer, Sink, lock},
    tree::Tree,
};
use crate::defaults;

/// Stack of a thread, in bytes: the deepest calls hash, and take more than half of it in builds
/// without optimization. Unused stack takes no memory.
const STACK_BYTES: usize = 1024 * 1024;

/// Bytes of requests that wait, in all sessions together.
#[derive(Debug, Default)]
pub(crate) struct Budget(AtomicUsize);

/// Handle of a running session. Dropping it does not end the session; [`Session::stop`] does.
#[derive(Debug, Clone)]
pub(crate) struct Session(Arc<Shared>);

/// What the threads of a session share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the watcher: there is an input to watch, or a thread is done.
    watch: Condvar,
    /// Wakes an idle follower.
    wake: Condvar,
    /// Wakes the leader: fewer requests wait, or fewer writes are queued.
    progress: Condvar,
    sink: Mutex<Sink>,
    closer: Closer,
    files: Files,
    options: SessionOptions,
    budget: Arc<Budget>,
    on_end: Mutex<Option<oneshot::Sender<Option<SessionError>>>>,
    /// Counts against the limit of sessions until the last thread is gone.
    _permit: Option<OwnedSemaphorePermit>,
}

/// State of a session. No thread blocks on I/O while it holds the lock.
#[derive(Debug, Default)]
struct State {
    /// The input, while the leader runs a request.
    input: Option<Box<Input>>,
    /// Counts the leader's requests: tells a thread whether `input` is still its own.
    turn: u64,
    scheduler: Scheduler<Waiting>,
    /// Encoded replies that are sent before any other: those that a leader had gathered when its
    /// input was taken, and those of queued writes.
    unsent: BytesMut,
    waiting_bytes: usize,
    write_behind: WriteBehind,
    handles: Handles,
    followers: Followers,
    ended: bool,
}

/// A request that waits for others.
#[derive(Debug)]
struct Waiting {
    frame: Box<[u8]>,
}

/// What is to be sent.
#[derive(Debug)]
enum Response {
    Reply(Reply),
    /// Number of bytes in the [`ReadBuffer`].
    Data(usize),
}

/// What a session is started with.
#[derive(Debug)]
pub(crate) struct Setup {
    tree: Tree,
    options: SessionOptions,
    budget: Arc<Budget>,
}

impl Setup {
    /// A session with `options`, except for its user. Relative paths start at `home`, or at the root
    /// of `options` if there is one.
    ///
    /// # Errors
    ///
    /// When that directory cannot be opened; `ENOSYS` when there is a root and the kernel has no
    /// `openat2(2)`.
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
    /// Serves one client until it closes the connection; its files are closed then. `read_ahead`
    /// came before what the channel gives. `permit` is dropped when the last thread is gone. The
    /// receiver gets the error that ended the session, if any.
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
        let (on_end, end) = oneshot::channel();
        let input = Box::new(Input::new(channel.source, read_ahead));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            watch: Condvar::new(),
            wake: Condvar::new(),
            progress: Condvar::new(),
            sink: Mutex::new(channel.sink),
            closer: channel.closer,
            files: Files {
                tree: setup.tree,
                read_only: setup.options.read_only,
                ended: AtomicBool::new(false),
            },
            options: setup.options,
            budget: setup.budget,
            on_end: Mutex::new(Some(on_end)),
            _permit: permit,
        });
        let mut state = shared.lock();
        shared.spawn(&mut state, |shared| shared.run_first_thread(input))?;
        drop(state);
        Ok((Self(shared), end))
    }

    /// Ends the session. Blocks while files are closed.
    pub(crate) fn stop(&self) {
        self.0.end(None);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn spawn(
        self: &Arc<Self>,
        state: &mut State,
        run: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("sftp".to_owned());
        thread.stack_size(STACK_BYTES).spawn(move || run(&shared))?;
        state.followers.threads += 1;
        Ok(())
    }

    /// Answers INIT, and leads.
    fn run_first_thread(self: &Arc<Self>, mut input: Box<Input>) {
        match self.answer_init(&mut input) {
            Ok(true) => self.run_thread(Some(input)),
            Ok(false) => self.end(None),
            Err(error) => self.end(Some(error)),
        }
    }

    /// False when the client closed the connection before it sent anything.
    fn answer_init(&self, input: &mut Input) -> Result<bool, SessionError> {
        let Some(first) = input.next_frame(&self.sink)? else {
            return Ok(false);
        };
        match Request::decode(Bytes::copy_from_slice(&first))? {
            (_, Request::Init { version }) => {
                version_reply(version, &self.options).encode(0, &mut input.replies);
                // VERSION is sent before any other reply, also before that of a former leader.
                input.flush(&self.sink)?;
                Ok(true)
            }
            _ => Err(SessionError::NoInit),
        }
    }

    /// Runs one request, without the lock. The flag of an error: whether a handle stays reserved.
    fn run(
        &self,
        mut state: MutexGuard<'_, State>,
        request: ParsedRequest<'_>,
        buffer: &mut ReadBuffer,
    ) -> Result<Outcome, (SftpError, bool)> {
        let opens = request.opens();
        let handles = request.bind(&mut state.handles);
        drop(state);
        let handles = handles.map_err(|error| (error, false))?;
        self.files
            .run(request, handles, buffer)
            .map_err(|error| (error, opens))
    }

    /// Gives a handle to what was opened.
    fn store_outcome(
        &self,
        outcome: Result<Outcome, (SftpError, bool)>,
    ) -> (MutexGuard<'_, State>, Response) {
        let mut state = self.lock();
        let response = match outcome {
            Ok(Outcome::Reply(reply)) => Response::Reply(reply),
            Ok(Outcome::Data(length)) => Response::Data(length),
            Ok(Outcome::Opened(open)) => Response::Reply(Reply::Handle {
                handle: state.handles.insert(open),
            }),
            Ok(Outcome::OpenedPart(part)) => {
                let opened = OpenedPart {
                    handle: state.handles.insert(part.open),
                    name: part.name,
                    length: part.length,
                };
                Response::Reply(Reply::Extended {
                    data: opened.encode(),
                })
            }
            Err((error, reserved)) => {
                if reserved {
                    state.handles.release_reservation();
                }
                Response::Reply(error.into())
            }
        };
        (state, response)
    }

    /// Sends the reply of a thread that does not lead. Requests that wait for this one start after
    /// that, so that their replies come after it.
    fn send_and_finish(
        &self,
        ticket: u64,
        id: u32,
        response: Response,
        buffer: &mut ReadBuffer,
    ) -> io::Result<()> {
        let sent = self.send(id, response, buffer);
        self.lock().scheduler.finish(ticket);
        self.progress.notify_all();
        sent
    }

    /// Sends the unsent replies, and `frame` after them.
    fn send_unsent_and(&self, frame: &[u8]) -> io::Result<()> {
        let mut sink = lock(&self.sink);
        let unsent = std::mem::take(&mut self.lock().unsent);
        sink.write(&unsent, frame)
    }

    fn send(&self, id: u32, response: Response, buffer: &mut ReadBuffer) -> io::Result<()> {
        let mut replies = BytesMut::new();
        let frame = match response {
            Response::Reply(reply) => {
                reply.encode(id, &mut replies);
                &replies[..]
            }
            Response::Data(length) => buffer.frame(id, length),
        };
        self.send_unsent_and(frame)
    }

    /// Ends the session; further calls do nothing. Closes all files, except those that a thread still
    /// uses: it closes them when it is done.
    fn end(&self, error: Option<SessionError>) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.ended, true) {
            return;
        }
        self.budget
            .give_back(std::mem::take(&mut state.waiting_bytes));
        state.scheduler.clear_waiting();
        let queue = state.write_behind.take_queue();
        let handles = std::mem::take(&mut state.handles);
        let input = state.input.take();
        drop(state);
        self.files.ended.store(true, Ordering::Relaxed);
        for condition in [&self.watch, &self.wake, &self.progress] {
            condition.notify_all();
        }
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.send_close_notify();
        }
        self.closer.shut_down();
        // Closing a file may block in its file system.
        drop((handles, queue, input));
        if let Some(on_end) = lock(&self.on_end).take() {
            let _ = on_end.send(error);
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

fn version_reply(client: u32, options: &SessionOptions) -> Reply {
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
