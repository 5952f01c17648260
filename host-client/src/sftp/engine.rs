//! Sends requests, and matches replies to them by id.
//!
//! ```text
//! callers ──► Outbox ──► writer ──►  agent      the table has the callers by id,
//!         ◄── Table  ◄── reader ◄──             the flow limits the bytes in flight
//! ```
//!
//! Reader and writer are tasks, or on a plain Unix socket threads that block: see [`threads`].

mod buffers;
mod flow;
mod frames;
mod outbox;
mod receive;
mod table;
mod tasks;
mod threads;
mod write_behind;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    sync::Semaphore,
    time::timeout,
};

pub(crate) use self::outbox::LocalSource;
pub(super) use self::{
    flow::Credit,
    outbox::{Cork, FileRange, Payload},
    table::{Answer, PendingReply},
    write_behind::FileTarget,
};
use self::{
    flow::Flow, frames::Frames, outbox::Outbox, table::Table, tasks::Tasks, threads::Threads,
};
use crate::{
    error::ClientError,
    protocol::sftp::{Reply, Request, VERSION},
};

/// Most requests in flight. The window limits the data in them; the rest are names.
const MAX_IN_FLIGHT: usize = 512;

/// How long a server may be silent while a reply is due, unless the caller says otherwise. Writing
/// a large file to a slow disk is one request, so this is long.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the exchange of versions may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Most extensions of a server that are kept.
const MAX_EXTENSIONS: usize = 256;

/// The operation in errors of the connection.
const DURING: &str = "working with files";

/// The operation in errors during the exchange of versions.
const STARTING: &str = "starting SFTP";

/// A session's connection.
#[derive(Debug)]
pub(super) struct Engine {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    flow: Arc<Flow>,
    extensions: BTreeMap<Bytes, Bytes>,
    /// Reader and writer. Dropping it closes the connection.
    driver: Driver,
}

/// What callers share with reader and writer.
#[derive(Debug)]
struct Shared {
    outbox: Outbox,
    table: Arc<Table>,
    /// How long the server may be silent while a reply is due.
    silence: Duration,
}

impl Shared {
    fn new(silence: Duration) -> Arc<Self> {
        Arc::new(Self {
            outbox: Outbox::default(),
            table: Arc::default(),
            silence,
        })
    }
}

/// What reads and writes.
#[derive(Debug)]
enum Driver {
    Tasks(#[expect(dead_code, reason = "held only to be dropped")] Tasks),
    Threads(#[expect(dead_code, reason = "held only to be dropped")] Threads),
}

/// A READ.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) handle: Bytes,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// The file for its data, if the engine [writes behind](Engine::writes_behind) and they are many.
    pub(super) target: Option<FileTarget>,
}

/// How the connection ended. Kept as the error of all later requests.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    Lost(String),
    Protocol(String),
    Silent(Duration),
}

impl Ending {
    fn closed() -> Self {
        Self::Lost("the agent closed the connection".to_owned())
    }

    fn error(self) -> ClientError {
        match self {
            Self::Lost(reason) => ClientError::lost(DURING, reason),
            Self::Protocol(what) => ClientError::protocol(what),
            Self::Silent(after) => ClientError::Silent {
                during: DURING,
                after,
            },
        }
    }
}

impl Engine {
    /// Exchanges versions, and starts reader and writer. The server may be silent for `silence` while a
    /// reply is due.
    pub(super) async fn start<S>(mut stream: S, silence: Duration) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut frames = Frames::new();
        let extensions = handshake(&mut stream, &mut frames, silence).await?;
        let shared = Shared::new(silence);
        let tasks = Tasks::start(stream, frames, &shared);
        Ok(Self::new(shared, extensions, Driver::Tasks(tasks)))
    }

    /// The same for a plain Unix socket, of which `early` was read already.
    pub(super) async fn start_unix(
        mut stream: UnixStream,
        early: &[u8],
        silence: Duration,
    ) -> Result<Self, ClientError> {
        let mut frames = Frames::new();
        match frames.space().get_mut(..early.len()) {
            Some(space) => space.copy_from_slice(early),
            // The server sends nothing before INIT, so this is none.
            None => return Err(ClientError::protocol("too much before the SFTP version")),
        }
        frames.filled(early.len());
        let extensions = handshake(&mut stream, &mut frames, silence).await?;
        let shared = Shared::new(silence);
        let threads = Threads::start(stream, frames, &shared)
            .map_err(|error| ClientError::lost(STARTING, error))?;
        Ok(Self::new(shared, extensions, Driver::Threads(threads)))
    }

    fn new(shared: Arc<Shared>, extensions: BTreeMap<Bytes, Bytes>, driver: Driver) -> Self {
        Self {
            shared,
            permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            flow: Arc::new(Flow::new()),
            extensions,
            driver,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.shared.table.has_ended()
    }

    /// The value of an extension the server announced.
    pub(super) fn extension(&self, name: &str) -> Option<&Bytes> {
        self.extensions.get(name.as_bytes())
    }

    /// Sends a request; waits only until it may be in flight.
    pub(super) async fn submit(&self, request: Request) -> Result<PendingReply, ClientError> {
        let (id, pending) = self.admit(None, None).await?;
        self.shared.outbox.push(id, &request);
        Ok(pending)
    }

    /// Waits until `bytes` more may be in flight.
    pub(super) async fn credit(&self, bytes: u32) -> Credit {
        self.flow.acquire(bytes).await
    }

    /// The same without waiting.
    pub(super) fn try_credit(&self, bytes: u32) -> Option<Credit> {
        self.flow.try_acquire(bytes)
    }

    /// Whether the data of a READ can be written to a [`FileTarget`] by the engine.
    pub(super) const fn writes_behind(&self) -> bool {
        matches!(self.driver, Driver::Threads(_))
    }

    /// Sends a READ, with a credit for its data, or without one for the rest of a short reply.
    pub(super) async fn submit_read(
        &self,
        read: Read,
        credit: Option<Credit>,
    ) -> Result<PendingReply, ClientError> {
        let Read {
            handle,
            offset,
            length,
            target,
        } = read;
        let (id, pending) = self.admit(credit, target).await?;
        let request = Request::Read {
            handle,
            offset,
            length,
        };
        self.shared.outbox.push(id, &request);
        Ok(pending)
    }

    /// Sends a WRITE.
    pub(super) async fn submit_write(
        &self,
        handle: Bytes,
        offset: u64,
        payload: Payload,
        credit: Credit,
    ) -> Result<PendingReply, ClientError> {
        let (id, pending) = self.admit(Some(credit), None).await?;
        self.shared.outbox.push_write(id, handle, offset, payload);
        Ok(pending)
    }

    /// Waits until one more request may be in flight, and gives its id. Nothing is awaited from here to
    /// its push: no id without a request is left when the caller is dropped.
    async fn admit(
        &self,
        credit: Option<Credit>,
        target: Option<FileTarget>,
    ) -> Result<(u32, PendingReply), ClientError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| self.shared.table.ending().error())?;
        self.shared.table.expect(Some(permit), credit, target)
    }

    /// Sends a request to clean up; its reply need not be waited for. It needs no permit: there is
    /// one at most for each handle or file that another request made. `None` when the connection is
    /// over.
    pub(super) fn submit_now(&self, request: &Request) -> Option<PendingReply> {
        let (id, pending) = self.shared.table.expect(None, None, None).ok()?;
        self.shared.outbox.push(id, request);
        Some(pending)
    }

    /// Holds requests back until the returned guard is dropped, so that they go in one write.
    pub(super) fn cork(&self) -> Cork<'_> {
        self.shared.outbox.cork()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.outbox.close();
    }
}

/// Exchanges versions; returns the extensions of the server.
async fn handshake<S>(
    stream: &mut S,
    frames: &mut Frames,
    silence: Duration,
) -> Result<BTreeMap<Bytes, Bytes>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let after = HANDSHAKE_TIMEOUT.min(silence);
    timeout(after, exchange_versions(stream, frames))
        .await
        .map_err(|_| ClientError::Silent {
            during: STARTING,
            after,
        })?
}

async fn exchange_versions<S>(
    stream: &mut S,
    frames: &mut Frames,
) -> Result<BTreeMap<Bytes, Bytes>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frame = BytesMut::new();
    Request::Init { version: VERSION }.encode(0, &mut frame);
    let sent = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    sent.await
        .map_err(|error| ClientError::lost(STARTING, error))?;
    let frame = loop {
        match frames.next() {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(ending) => return Err(ending.error()),
        }
        match stream.read(frames.space()).await {
            Ok(0) => {
                return Err(ClientError::lost(
                    STARTING,
                    "the agent closed the connection",
                ));
            }
            Ok(count) => frames.filled(count),
            Err(error) => return Err(ClientError::lost(STARTING, error)),
        }
    };
    match Reply::decode(frame) {
        Ok((
            _,
            Reply::Version {
                version: VERSION,
                extensions,
            },
        )) => Ok(extensions.into_iter().take(MAX_EXTENSIONS).collect()),
        Ok((_, Reply::Version { version, .. })) => Err(ClientError::protocol(format!(
            "SFTP version {version} where {VERSION} was due"
        ))),
        Ok(_) => Err(ClientError::protocol("a reply before the SFTP version")),
        Err(error) => Err(ClientError::protocol_because(
            "the SFTP version cannot be read",
            error,
        )),
    }
}

/// Gives the frames that are there to whom they belong.
fn dispatch(frames: &mut Frames, table: &Table) -> Result<(), Ending> {
    while let Some(frame) = frames.next()? {
        match Reply::decode(frame) {
            Ok((_, Reply::Version { .. })) => {
                return Err(Ending::Protocol("a second SFTP version".to_owned()));
            }
            Ok((id, reply)) => {
                if !table.answer(id, reply) {
                    let what = format!("a reply to request {id}, which is not due");
                    return Err(Ending::Protocol(what));
                }
            }
            Err(error) => return Err(Ending::Protocol(error.to_string())),
        }
    }
    Ok(())
}
