//! HTTP/2 on one connection.
//!
//! Chosen by ALPN after TLS, and without TLS by the connection preface (RFC 9113, sections 3.2 and 3.3). Each
//! request is a stream. Extended CONNECT (RFC 8441) is what an upgrade is in HTTP/1.1, and reaches the
//! handlers as one: a GET with the header `Upgrade`, answered with 101.

use std::{
    future::{Future, pending},
    io,
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::{
    body::Incoming, ext::Protocol, rt::Executor, server::conn::http2, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    select,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vsock_agent_transport::http::MAX_HEAD_BYTES;

use super::connection::Transport;
use crate::{defaults, http::reply::Reply, shutdown::Shutdown};

/// Maximum number of streams of a connection: above [`MAX_SESSIONS`](crate::defaults::MAX_SESSIONS), so that
/// the command beyond that is refused and does not wait, with events, files and ports beside them.
const MAX_STREAMS: u32 = 6000;

/// Bytes that a client may send on a stream before the handler takes them. Frames of a command are taken at
/// once; their window is [`INPUT_WINDOW_BYTES`](vsock_agent_protocol::exec::stream::INPUT_WINDOW_BYTES).
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// The same for all streams of a connection: 64 forwarded ports that take nothing stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 64 * STREAM_WINDOW_BYTES;

/// Largest frame that a client may send, in bytes.
const MAX_FRAME_BYTES: u32 = 64 * 1024;

/// Bytes of a stream's replies that are stored while the connection is busy. A thousand commands may write
/// to a connection that takes nothing.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Frames on streams that have been reset and forgotten, over the whole life of a connection, after which it is
/// ended. A client that ends commands early sends some; hyper's default of 1,024 ended connections that were in
/// use.
const MAX_LATE_FRAMES: usize = 100_000;

/// Interval of pings on an idle connection, and time for the answer. A connection whose client has gone
/// without closing it, as a machine that was restored from a snapshot, ends then.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for a client to answer that the connection is going to close, when it has no streams any more. Until
/// then it may open some (RFC 9113, section 6.8).
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(250);

/// Serves requests until the client closes the connection or `stop` is cancelled; replies in progress are
/// finished then. A connection whose first request does not arrive in [`defaults::HEAD_TIMEOUT`] is closed. A
/// request that changes something is handled to its end even if its client resets the stream.
///
/// # Errors
///
/// The error that ended the connection.
pub(crate) async fn serve(
    stream: Transport,
    shutdown: &Shutdown,
    stop: CancellationToken,
    answer: &(dyn Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Sync),
) -> io::Result<()> {
    let has_begun = CancellationToken::new();
    let service = service_fn(|mut request: Request<Incoming>| {
        has_begun.cancel();
        let is_upgrade = as_upgrade(&mut request);
        let is_safe = request.method().is_safe();
        let reply = answer(request);
        let shutdown = shutdown.clone();
        async move {
            let mut reply = if is_safe {
                reply.await
            } else {
                to_its_end(&shutdown, reply).await?
            };
            if is_upgrade && reply.status() == StatusCode::SWITCHING_PROTOCOLS {
                *reply.status_mut() = StatusCode::OK;
                reply.headers_mut().remove(header::UPGRADE);
                reply.headers_mut().remove(header::CONNECTION);
                reply.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            }
            Ok::<_, io::Error>(reply)
        }
    });
    let streams = TaskTracker::new();
    let connection = http2::Builder::new(Spawn(shutdown.clone(), streams.clone()))
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_local_error_reset_streams(MAX_LATE_FRAMES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    // Before the handshake hyper sends no pings.
    let is_silent = async {
        if timeout(defaults::HEAD_TIMEOUT, has_begun.cancelled())
            .await
            .is_ok()
        {
            pending::<()>().await;
        }
    };
    let mut connection = std::pin::pin!(connection);
    let ended = select! {
        ended = connection.as_mut() => ended,
        () = is_silent => return Ok(()),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            streams.close();
            select! {
                ended = connection => ended,
                () = async { streams.wait().await; sleep(GOODBYE_TIMEOUT).await } => Ok(()),
            }
        }
    };
    ended.map_err(io::Error::other)
}

/// Handles a request in a task of its own, which goes on when the client resets the stream.
async fn to_its_end(shutdown: &Shutdown, reply: BoxFuture<'static, Reply>) -> io::Result<Reply> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    shutdown.spawn(async move {
        // Fails if the client has reset the stream.
        let _ = sender.send(reply.await);
    });
    receiver.await.map_err(io::Error::other)
}

/// Makes the request of extended CONNECT one for an upgrade.
fn as_upgrade(request: &mut Request<Incoming>) -> bool {
    if request.method() != Method::CONNECT {
        return false;
    }
    let Some(protocol) = request.extensions().get::<Protocol>() else {
        return false;
    };
    let Ok(protocol) = HeaderValue::from_bytes(protocol.as_ref()) else {
        return false;
    };
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::UPGRADE, protocol);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    true
}

/// Runs the tasks of hyper, which are the streams, and tracks them.
#[derive(Debug, Clone)]
struct Spawn(Shutdown, TaskTracker);

impl<F> Executor<F> for Spawn
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, work: F) {
        let work = self.1.track_future(work);
        self.0.spawn(async move {
            let _ = work.await;
        });
    }
}
