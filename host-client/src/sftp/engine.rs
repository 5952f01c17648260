//! Sends requests, and matches replies to them by id.
//!
//! ```text
//! callers ──► Outbox ──► writer ──►  agent      the table has the callers by id,
//!         ◄── Table  ◄── reader ◄──             the window limits the bytes in flight
//! ```

mod buffers;
mod frames;
mod outbox;
mod table;
mod tasks;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

pub(crate) use self::outbox::LocalSource;
use self::{frames::Frames, outbox::Outbox, table::Table, tasks::Tasks};
pub(super) use self::{
    outbox::{Cork, FileRange, Payload},
    table::PendingReply,
};
use crate::{
    endpoint::Endpoint,
    error::ClientError,
    protocol::sftp::{Reply, Request, VERSION},
};

/// Most requests in flight. The window limits the data in them; the rest are names.
const MAX_IN_FLIGHT: usize = 512;

/// Bytes of files in flight, in both directions together. With less, too few of the largest requests
/// are in flight for both ends to work while several replies are due.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// How long a server may be silent while a reply is due, unless the caller says otherwise. Writing
/// a large file to a slow disk is one request, so this is long.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(300);

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
    /// Has a permit for each byte.
    window: Arc<Semaphore>,
    extensions: BTreeMap<Bytes, Bytes>,
    _tasks: Tasks,
}

/// Bytes of the window, which are free again when this is dropped.
pub(super) type Credit = OwnedSemaphorePermit;

/// What callers share with reader and writer.
#[derive(Debug)]
struct Shared {
    outbox: Outbox,
    table: Arc<Table>,
    /// How long the server may be silent while a reply is due.
    silence: Duration,
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
            Self::Silent(after) => ClientError::silent(DURING, after),
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
        let shared = Arc::new(Shared {
            outbox: Outbox::default(),
            table: Arc::default(),
            silence,
        });
        let window = usize::try_from(WINDOW_BYTES).unwrap_or(usize::MAX);
        Ok(Self {
            _tasks: Tasks::start(stream, frames, &shared),
            shared,
            permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            window: Arc::new(Semaphore::new(window)),
            extensions,
        })
    }

    /// Sets which agent errors are of.
    pub(super) fn set_endpoint(&self, endpoint: &Endpoint) {
        // It is set once.
        let _ = self.shared.table.endpoint.set(endpoint.clone());
    }

    /// The endpoint of the agent.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.shared.table.endpoint.get()
    }

    /// Adds to an error which agent it is of.
    pub(super) fn at(&self, error: ClientError) -> ClientError {
        self.shared.table.at(error)
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
        self.submit_with(request, None).await
    }

    /// The same with a credit for the data of the reply.
    pub(super) async fn submit_with(
        &self,
        request: Request,
        credit: Option<Credit>,
    ) -> Result<PendingReply, ClientError> {
        let (id, pending) = self.admit(credit).await?;
        self.shared.outbox.push(id, &request);
        Ok(pending)
    }

    /// Waits until `bytes` more may be in flight.
    pub(super) async fn credit(&self, bytes: u32) -> Option<Credit> {
        let window = Arc::clone(&self.window);
        // The semaphore is never closed.
        window
            .acquire_many_owned(bytes.min(WINDOW_BYTES))
            .await
            .ok()
    }

    /// The same without waiting.
    pub(super) fn try_credit(&self, bytes: u32) -> Option<Credit> {
        let window = Arc::clone(&self.window);
        window.try_acquire_many_owned(bytes.min(WINDOW_BYTES)).ok()
    }

    /// Sends a WRITE.
    pub(super) async fn submit_write(
        &self,
        handle: Bytes,
        offset: u64,
        payload: Payload,
        credit: Option<Credit>,
    ) -> Result<PendingReply, ClientError> {
        let (id, pending) = self.admit(credit).await?;
        self.shared.outbox.push_write(id, handle, offset, payload);
        Ok(pending)
    }

    /// Waits until one more request may be in flight, and gives its id. Nothing is awaited from here to
    /// its push: no id without a request is left when the caller is dropped.
    async fn admit(&self, credit: Option<Credit>) -> Result<(u32, PendingReply), ClientError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| self.at(self.shared.table.ending().error()))?;
        self.shared.table.expect(Some(permit), credit)
    }

    /// Sends a request to clean up; its reply need not be waited for. It needs no permit: there is
    /// one at most for each handle or file that another request made. `None` when the connection is
    /// over.
    pub(super) fn submit_now(&self, request: &Request) -> Option<PendingReply> {
        let (id, pending) = self.shared.table.expect(None, None).ok()?;
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
        .map_err(|_| ClientError::silent(STARTING, after))?
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
