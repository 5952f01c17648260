//! An SFTP session: requests in, replies out, on threads of its own.
//!
//! The threads follow the Leader/Followers pattern ([`followers`]). The *leader* owns the [`Input`]: it
//! reads a request, runs it, and replies, without handing it to another thread. While it runs a
//! request, it leaves the input to be taken. One follower, the *watcher*, looks at it while there is
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
#[cfg(test)]
mod model;
mod write_behind;
mod writer;

use std::{
    io,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use vsock_agent_protocol::sftp::{
    Reply, Request, SessionOptions, VERSION,
    extension::{OpenedPart, SESSION},
};

use self::{
    followers::{Followers, Limits, Role, SessionIo},
    writer::QueuedWrite,
};
use super::{
    SessionError,
    budget::{Budget, Reserved},
    extension::ADVERTISED,
    files::{Files, Outcome},
    handles::Handles,
    input::Input,
    output::{Output, lock},
    reply_buffer::ReplyBuffer,
    request::{ParsedRequest, decode},
    stream::{Channel, Closer},
    tree::Tree,
};
/// Stack of a thread, in bytes: the deepest calls hash, and take more than half of it in builds
/// without optimization. Unused stack takes no memory.
const STACK_BYTES: usize = 1024 * 1024;

/// Handle of a running session. Dropping it does not end the session; [`Session::stop`] does.
#[derive(Debug, Clone)]
pub(crate) struct Session(Arc<Shared>);

/// What the threads of a session share.
#[derive(Debug)]
struct Shared {
    followers: Followers<Box<Input>, Waiting, QueuedWrite>,
    handles: Mutex<Handles>,
    output: Arc<Output>,
    closer: Closer,
    files: Files,
    options: SessionOptions,
    budget: Arc<Budget>,
    on_end: Mutex<Option<oneshot::Sender<Option<SessionError>>>>,
    /// Counts against the limit of sessions until the last thread is gone.
    _permit: Option<OwnedSemaphorePermit>,
}

/// A request that waits for others: its frame.
#[derive(Debug)]
struct Waiting {
    frame: Box<[u8]>,
    _reserved: Reserved,
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
        let output = Arc::new(Output::new(channel.sink));
        let input = Input::new(channel.source, Arc::clone(&output), read_ahead);
        let shared = Arc::new(Shared {
            followers: Followers::new(Limits::default(), Arc::clone(&setup.budget)),
            handles: Mutex::default(),
            output,
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
        shared.start_thread(|shared| shared.run_first_thread(input.into()))?;
        Ok((Self(shared), end))
    }

    /// Ends the session. Blocks while files are closed.
    pub(crate) fn stop(&self) {
        self.0.end(None);
    }
}

impl Shared {
    fn start_thread(
        self: &Arc<Self>,
        run: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("sftp".to_owned());
        thread.stack_size(STACK_BYTES).spawn(move || {
            let _guard = PanicGuard(&shared);
            run(&shared);
        })?;
        Ok(())
    }

    /// Answers INIT, and leads.
    fn run_first_thread(self: &Arc<Self>, mut input: Box<Input>) {
        match self.answer_init(&mut input) {
            Ok(true) => self.run_thread(Role::Lead(input)),
            Ok(false) => self.end(None),
            Err(error) => self.end(Some(error)),
        }
    }

    /// False when the client closed the connection before it sent anything.
    fn answer_init(&self, input: &mut Input) -> Result<bool, SessionError> {
        let Some(first) = input.next_frame()? else {
            return Ok(false);
        };
        match Request::decode(Bytes::copy_from_slice(&first))? {
            (_, Request::Init { version }) => {
                let version = version_reply(version, &self.options);
                // Sent before any other reply, also before that of a former leader.
                self.output
                    .send(ReplyBuffer::default().reply(0, &version))?;
                Ok(true)
            }
            _ => Err(SessionError::NoInit),
        }
    }

    /// The main loop of a thread: takes one role after the other.
    fn run_thread(self: &Arc<Self>, mut role: Role<Box<Input>, Waiting>) {
        loop {
            let result = match role {
                Role::Lead(input) => leader::lead(self, input),
                Role::Run(ticket, waiting) => self.run_waiting(ticket, &waiting),
                Role::WriteBehind => self.write_queued(),
                Role::Exit => return,
            };
            if let Err(error) = result {
                self.end(Some(error));
            }
            role = self.followers.next_role(self);
        }
    }

    /// Runs a request that had to wait.
    fn run_waiting(&self, ticket: u64, waiting: &Waiting) -> Result<(), SessionError> {
        let mut buffer = ReplyBuffer::default();
        let (id, request) = decode(&waiting.frame)?;
        let reply = self.run(id, request, &mut buffer);
        Ok(self.send_and_finish(ticket, reply)?)
    }

    /// Runs one request, and gives its reply. A handle is removed here or reserved, and given to what
    /// was opened.
    fn run<'a>(
        &self,
        id: u32,
        request: ParsedRequest<'_>,
        buffer: &'a mut ReplyBuffer,
    ) -> &'a [u8] {
        let opens = request.opens();
        let bound = request.bind(&mut lock(&self.handles));
        let outcome = bound.and_then(|bound| {
            let outcome = self.files.run(request, bound, buffer);
            if outcome.is_err() && opens {
                lock(&self.handles).release_reservation();
            }
            outcome
        });
        let reply = match outcome {
            Ok(Outcome::Reply(reply)) => reply,
            Ok(Outcome::Data(length)) => return buffer.data(id, length),
            Ok(Outcome::Opened(open)) => Reply::Handle {
                handle: lock(&self.handles).insert(open),
            },
            Ok(Outcome::OpenedPart(part)) => Reply::Extended {
                data: OpenedPart {
                    handle: lock(&self.handles).insert(part.open),
                    name: part.name,
                    length: part.length,
                }
                .encode(),
            },
            Err(error) => error.into(),
        };
        buffer.reply(id, &reply)
    }

    /// Sends the reply of a thread that does not lead.
    fn send_and_finish(&self, ticket: u64, reply: &[u8]) -> io::Result<()> {
        let sent = self.output.send(reply);
        self.followers.finish(ticket);
        sent
    }

    /// Ends the session; further calls do nothing. Closes all files, except those that a thread still
    /// uses: it closes them when it is done.
    fn end(&self, error: Option<SessionError>) {
        let Some(remains) = self.followers.end() else {
            return;
        };
        self.files.ended.store(true, Ordering::Relaxed);
        self.output.close();
        self.closer.shut_down();
        let handles = std::mem::take(&mut *lock(&self.handles));
        // Closing a file may block in its file system.
        drop((handles, remains));
        if let Some(on_end) = lock(&self.on_end).take() {
            let _ = on_end.send(error);
        }
    }
}

impl SessionIo for Arc<Shared> {
    fn spawn(&self) -> io::Result<()> {
        self.start_thread(|shared| shared.run_thread(shared.followers.next_role(shared)))
    }

    fn flush(&self) {
        // If that fails, so does the next read.
        let _ = self.output.send(&[]);
    }

    fn is_hung_up(&self) -> bool {
        self.closer.is_hung_up()
    }

    fn end_session(&self) {
        self.end(None);
    }
}

impl Waiting {
    fn new(frame: &[u8], budget: &Arc<Budget>) -> Self {
        Self {
            frame: frame.into(),
            _reserved: budget.take(frame.len()),
        }
    }
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

/// Ends the session when a thread panics: its request would never be answered.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end(Some(SessionError::Panic));
        }
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
