//! Requests out, replies in, matched by id. Nobody is believed.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    error::ClientError,
    protocol::sftp::{FrameHead, Reply, Request, VERSION},
};

/// Most requests in flight. OpenSSH's client has 64 too; each has at most one frame.
pub(super) const MAX_IN_FLIGHT: usize = 64;

/// Frames handed to the writer but not written yet. What limits memory is [`MAX_IN_FLIGHT`].
const QUEUE_DEPTH: usize = 16;

/// How long a server may be silent while it owes a reply. Writing a large file to a slow disk is
/// one request, so this is long.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// Most extensions remembered.
const MAX_EXTENSIONS: usize = 256;

/// Bytes read from the connection at once: room for a whole frame.
const READ_BYTES: usize = 64 * 1024;

/// Bytes gathered into one write. A vsock packet and a TLS record hold less.
const WRITE_BYTES: usize = 64 * 1024;

/// What is going on, for errors of the connection.
const DURING: &str = "working with files";

/// A session's connection.
#[derive(Debug)]
pub(super) struct Engine {
    frames: mpsc::Sender<BytesMut>,
    table: Arc<Table>,
    permits: Arc<Semaphore>,
    extensions: BTreeMap<Bytes, Bytes>,
    /// Reader and writer. Dropping it closes the connection.
    _tasks: JoinSet<()>,
}

/// Who waits for which id.
#[derive(Debug, Default)]
struct Table(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    last_id: u32,
    replies: HashMap<u32, Waiter>,
    /// Set when the connection is over: why.
    over: Option<Ending>,
}

/// Someone who waits for a reply. The permit goes back when the reply is there, not when the
/// caller loses interest: the request is in flight either way.
#[derive(Debug)]
struct Waiter {
    tell: oneshot::Sender<Reply>,
    _permit: OwnedSemaphorePermit,
}

/// How the connection ended. Kept to be told to everybody who still comes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    Lost(String),
    Protocol(String),
    Silent,
}

impl Ending {
    fn error(self) -> ClientError {
        match self {
            Self::Lost(reason) => ClientError::lost(DURING, reason),
            Self::Protocol(what) => ClientError::protocol(what),
            Self::Silent => ClientError::Silent {
                during: DURING,
                after: SILENCE_TIMEOUT,
            },
        }
    }
}

/// A reply that is due.
#[derive(Debug)]
pub(super) struct PendingReply {
    take: oneshot::Receiver<Reply>,
    table: Arc<Table>,
}

impl PendingReply {
    /// Waits for it. If this is dropped the reply is thrown away when it comes.
    pub(super) async fn reply(self) -> Result<Reply, ClientError> {
        match self.take.await {
            Ok(reply) => Ok(reply),
            Err(_) => Err(self.table.ending().error()),
        }
    }
}

impl Engine {
    /// Says hello and starts the tasks.
    pub(super) async fn start<S>(stream: S) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let mut reader = FrameReader::new(reader);
        let mut writer = writer;
        let extensions = timeout(HELLO_TIMEOUT, hello(&mut reader, &mut writer))
            .await
            .map_err(|_| ClientError::Silent {
                during: "starting SFTP",
                after: HELLO_TIMEOUT,
            })??;
        let (frames, queue) = mpsc::channel(QUEUE_DEPTH);
        let table = Arc::new(Table::default());
        let mut tasks = JoinSet::new();
        let told = Arc::clone(&table);
        tasks.spawn(async move {
            if let Err(error) = write_frames(queue, writer).await {
                told.end(Ending::Lost(error.to_string()));
            }
        });
        let told = Arc::clone(&table);
        tasks.spawn(async move {
            let ending = read_replies(reader, &told).await;
            told.end(ending);
        });
        Ok(Self {
            frames,
            table,
            permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            extensions,
            _tasks: tasks,
        })
    }

    /// The value of an extension the server announced.
    pub(super) fn extension(&self, name: &str) -> Option<&Bytes> {
        self.extensions.get(name.as_bytes())
    }

    /// Sends a request; waits only until it may be in flight.
    pub(super) async fn submit(&self, request: Request) -> Result<PendingReply, ClientError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| self.table.ending().error())?;
        // The place in the queue first: from here to the end nothing is awaited, so that a caller
        // that leaves cannot leave an id behind whose request was never sent.
        let place = self
            .frames
            .reserve()
            .await
            .map_err(|_| self.table.ending().error())?;
        let (id, pending) = self.table.expect(permit)?;
        let mut frame = BytesMut::new();
        request.encode(id, &mut frame);
        place.send(frame);
        Ok(pending)
    }

    /// Sends a request whose reply nobody wants, if there is room for it now.
    pub(super) fn submit_now(&self, request: &Request) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return;
        };
        let Ok(place) = self.frames.try_reserve() else {
            return;
        };
        let Ok((id, _)) = self.table.expect(permit) else {
            return;
        };
        let mut frame = BytesMut::new();
        request.encode(id, &mut frame);
        place.send(frame);
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh id, and the reply to it that is due.
    fn expect(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(u32, PendingReply), ClientError> {
        let mut waiting = self.lock();
        if let Some(ending) = &waiting.over {
            return Err(ending.clone().error());
        }
        let mut id = waiting.last_id.wrapping_add(1);
        // After four thousand million requests an id comes again; an old one may be in flight.
        while waiting.replies.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        waiting.last_id = id;
        let (tell, take) = oneshot::channel();
        let waiter = Waiter {
            tell,
            _permit: permit,
        };
        waiting.replies.insert(id, waiter);
        let pending = PendingReply {
            take,
            table: Arc::clone(self),
        };
        Ok((id, pending))
    }

    fn is_idle(&self) -> bool {
        self.lock().replies.is_empty()
    }

    /// Gives a reply to whom it belongs; false if nobody asked.
    fn answer(&self, id: u32, reply: Reply) -> bool {
        let waiter = self.lock().replies.remove(&id);
        match waiter {
            None => false,
            Some(waiter) => {
                // The caller may have stopped waiting.
                let _ = waiter.tell.send(reply);
                true
            }
        }
    }

    /// Ends everybody's waiting. The first ending is the cause, later ones follow from it.
    fn end(&self, ending: Ending) {
        let mut waiting = self.lock();
        waiting.over.get_or_insert(ending);
        waiting.replies.clear();
    }

    fn ending(&self) -> Ending {
        let over = self.lock().over.clone();
        over.unwrap_or_else(|| Ending::Lost("the session was closed".to_owned()))
    }
}

async fn hello<S>(
    reader: &mut FrameReader<ReadHalf<S>>,
    writer: &mut WriteHalf<S>,
) -> Result<BTreeMap<Bytes, Bytes>, ClientError>
where
    S: AsyncRead + AsyncWrite,
{
    const DURING: &str = "starting SFTP";
    let mut frame = BytesMut::new();
    Request::Init { version: VERSION }.encode(0, &mut frame);
    let sent = async {
        writer.write_all(&frame).await?;
        writer.flush().await
    };
    sent.await
        .map_err(|error| ClientError::lost(DURING, error))?;
    let frame = match reader.next().await {
        Ok(frame) => frame,
        Err(Ending::Lost(reason)) => return Err(ClientError::lost(DURING, reason)),
        Err(ending) => return Err(ending.error()),
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

/// Writes frames as they come, several at once if several wait.
async fn write_frames<W>(mut queue: mpsc::Receiver<BytesMut>, mut writer: W) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some(mut frame) = queue.recv().await {
        while frame.len() < WRITE_BYTES
            && let Ok(next) = queue.try_recv()
        {
            frame.extend_from_slice(&next);
        }
        writer.write_all(&frame).await?;
        if queue.is_empty() {
            writer.flush().await?;
        }
    }
    Ok(())
}

/// Reads replies until the connection is over; returns how it ended.
async fn read_replies<R>(mut reader: FrameReader<R>, table: &Table) -> Ending
where
    R: AsyncRead + Unpin,
{
    loop {
        let frame = match timeout(SILENCE_TIMEOUT, reader.next()).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(ending)) => return ending,
            Err(_) if table.is_idle() => continue,
            Err(_) => return Ending::Silent,
        };
        match Reply::decode(frame) {
            Ok((_, Reply::Version { .. })) => {
                return Ending::Protocol("a second SFTP version".to_owned());
            }
            Ok((id, reply)) => {
                if !table.answer(id, reply) {
                    return Ending::Protocol(format!("a reply to request {id}, which is not due"));
                }
            }
            Err(error) => return Ending::Protocol(error.to_string()),
        }
    }
}

/// Cuts a connection into frames. A future that is dropped half way loses nothing.
#[derive(Debug)]
struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: BytesMut::new(),
        }
    }

    /// The body of the next frame, refused by its head if it is too long.
    async fn next(&mut self) -> Result<Bytes, Ending> {
        self.fill(FrameHead::BYTES).await?;
        let mut head = [0; FrameHead::BYTES];
        head.copy_from_slice(&self.buffer[..FrameHead::BYTES]);
        let head = FrameHead::parse(head).map_err(|error| Ending::Protocol(error.to_string()))?;
        let body = usize::try_from(head.body_bytes)
            .map_err(|_| Ending::Protocol("a frame larger than memory".to_owned()))?;
        self.fill(FrameHead::BYTES + body).await?;
        let mut frame = self.buffer.split_to(FrameHead::BYTES + body);
        Ok(frame.split_off(FrameHead::BYTES).freeze())
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), Ending> {
        while self.buffer.len() < bytes {
            let missing = bytes - self.buffer.len();
            self.buffer.reserve(missing.max(READ_BYTES));
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(Ending::Lost("the agent closed the connection".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(Ending::Lost(error.to_string())),
            }
        }
        Ok(())
    }
}
