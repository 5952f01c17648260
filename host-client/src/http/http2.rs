//! The HTTP/2 connection of a client: every call, command and event is a stream of it.
//!
//! It is opened for the first call, and stays open while the client exists. Pings find out that the agent is
//! gone when nothing closes the connection, as when a machine is restored from a snapshot. A connection that
//! has ended is replaced for the next call.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{self, Handle},
    select,
    sync::Mutex,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::connect::{AgentStream, Duplex};

/// A body of a request.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// Bytes that the agent may send on a stream before they are taken. The frames of commands are taken at
/// once; their window is
/// [`OUTPUT_WINDOW_BYTES`](crate::protocol::exec::stream::OUTPUT_WINDOW_BYTES) each.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// The same for all streams together.
const CONNECTION_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;

/// Largest frame of the agent, in bytes.
const MAX_FRAME_BYTES: u32 = 256 * 1024;

/// Bytes of a stream's request that are stored while the connection is busy.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Default time after which an agent that sends nothing is considered lost.
pub(crate) const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);

/// Frames on streams that were reset and forgotten, over the whole life of a connection, after which it is
/// ended. The agent's output comes late when a command is dropped; hyper's default is 1,024.
const MAX_LATE_FRAMES: usize = 100_000;

/// Time for the task of a connection to say why it ended, when a request on it has failed.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which an agent that did not speak HTTP/2 is asked again: it may have been replaced.
const ASK_AGAIN: Duration = Duration::from_secs(300);

/// A connection. Clones share it; it ends with the last one, and so do its streams.
#[derive(Debug, Clone)]
pub(crate) struct Http2 {
    sender: SendRequest<RequestBody>,
    ended: CancellationToken,
    /// The alert by which the agent refused this identity, if it did.
    alert: Arc<OnceLock<String>>,
    is_answered: Arc<AtomicBool>,
    _driver: Arc<JoinSet<()>>,
    runtime: runtime::Id,
}

/// A request that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// `None` if the connection ended without one.
    pub(crate) error: Option<hyper::Error>,
    /// The alert by which the agent refused this identity, if it did.
    pub(crate) alert: Option<String>,
    /// The request, if nothing of it was sent.
    pub(crate) unsent: Option<Request<RequestBody>>,
}

impl Http2 {
    /// Starts HTTP/2 on a connected stream, with a task that drives it. The connection ends when the agent
    /// sends nothing for `silence`: a ping is sent after a third of it.
    pub(crate) async fn start(
        stream: AgentStream,
        silence: Duration,
    ) -> Result<Self, hyper::Error> {
        let alert = stream.alert();
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_local_error_reset_streams(MAX_LATE_FRAMES)
            .max_header_list_size(MAX_HEAD_BYTES)
            .keep_alive_interval(silence / 3)
            .keep_alive_timeout(silence * 2 / 3)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _guard = guard;
            if let Err(error) = connection.await {
                debug!(%error, "an HTTP/2 connection ended");
            }
        });
        Ok(Self {
            sender,
            ended,
            alert,
            is_answered: Arc::default(),
            _driver: Arc::new(driver),
            runtime: Handle::current().id(),
        })
    }

    /// Whether another request can be sent on it from the current runtime. One of another runtime makes no
    /// progress while nobody drives that.
    pub(crate) fn is_usable(&self) -> bool {
        !self.sender.is_closed()
            && !self.ended.is_cancelled()
            && self.runtime == Handle::current().id()
    }

    /// Sends a request, and waits for the head of the reply as long as there is a connection. When the
    /// future is dropped, the stream is reset.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Box<Failed>> {
        let mut reply = pin!(self.sender.try_send_request(request));
        let sent = select! {
            biased;
            sent = reply.as_mut() => Some(sent),
            // A request that is sent just when the connection ends stays in hyper's queue, and its future
            // pends (hyperium/hyper#4122).
            () = self.ended.cancelled() => reply.now_or_never(),
        };
        let mut failed = Failed {
            error: None,
            alert: None,
            unsent: None,
        };
        match sent {
            Some(Ok(response)) => {
                self.is_answered.store(true, Ordering::Release);
                return Ok(response);
            }
            Some(Err(mut error)) => {
                failed.unsent = error.take_message();
                failed.error = Some(error.into_error());
            }
            None => {}
        }
        if self.sender.is_closed() {
            let _ = timeout(REASON_TIMEOUT, self.ended.cancelled()).await;
        }
        // It is noted before hyper has the error: the sender may not know yet that the connection ends.
        failed.alert = self.alert.get().cloned();
        Err(Box::new(failed))
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.alert, &other.alert)
    }
}

impl Http2 {
    /// Whether there was a reply, before which the agent's settings have come: extended CONNECT must not be
    /// sent without them (RFC 8441, section 3).
    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Acquire)
    }
}

/// A stream that is used as a connection.
#[derive(Debug)]
pub(crate) struct UpgradedStream {
    // Only its one owner uses it, and `Sync` is not asked of hyper's streams.
    io: Mutex<TokioIo<Upgraded>>,
    /// Keeps the connection.
    _connection: Http2,
}

impl UpgradedStream {
    pub(crate) fn new(upgraded: Upgraded, connection: Http2) -> Self {
        Self {
            io: Mutex::new(TokioIo::new(upgraded)),
            _connection: connection,
        }
    }

    fn io(&mut self) -> Pin<&mut TokioIo<Upgraded>> {
        Pin::new(self.io.get_mut())
    }
}

impl Duplex for UpgradedStream {}

impl AsyncRead for UpgradedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buffer)
    }
}

impl AsyncWrite for UpgradedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

/// Largest head of a reply, in bytes.
const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// The connection of a client, if the agent speaks HTTP/2. Locked while it is opened, so that calls that
/// begin together share it.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<State>);

#[derive(Debug, Default)]
pub(crate) enum State {
    #[default]
    Unknown,
    /// The agent did not choose HTTP/2, at this time.
    Refused(Instant),
    Open(Http2),
}

impl State {
    /// The open connection.
    pub(crate) fn usable(&self) -> Option<Http2> {
        match self {
            Self::Open(connection) if connection.is_usable() => Some(connection.clone()),
            _ => None,
        }
    }

    /// Whether the agent refused HTTP/2 not long ago.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(at) if at.elapsed() < ASK_AGAIN)
    }
}

impl Pool {
    /// The state, for whoever opens the connection.
    pub(crate) async fn lock(&self) -> tokio::sync::MutexGuard<'_, State> {
        self.0.lock().await
    }

    /// Forgets a connection that has failed.
    pub(crate) async fn discard(&self, failed: &Http2) {
        let mut state = self.0.lock().await;
        if matches!(&*state, State::Open(open) if open.is_same(failed)) {
            *state = State::Unknown;
        }
    }
}
