//! HTTP/1.1 on one connection, with the limits of every listener.
//!
//! Nothing here is generic, so that hyper's server, which is large, is compiled once.

use std::{convert::Infallible, io};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{select, sync::Mutex, time::timeout};
use tokio_rustls::TlsStream;
use tokio_util::{either::Either, sync::CancellationToken};
use vsock_agent_transport::{
    Stream,
    http::{MAX_HEAD_BYTES, MAX_HEADERS},
    tls::REFUSAL_TIMEOUT,
};

use crate::{
    defaults,
    http::reply::{ApiError, Reply},
};

/// The transport of HTTP, for server and client: a plain connection, or one with TLS.
pub(crate) type Transport = Either<Stream, TlsStream<Stream>>;

/// Serves requests until the client closes the connection or `stop` is cancelled; a reply in progress is
/// finished then. A client that has shut down its own direction still gets its reply. For one that has
/// closed the connection, the handler is dropped, unless the request changes something.
///
/// # Errors
///
/// The error that ended the connection.
pub(crate) async fn serve(
    stream: Transport,
    stop: CancellationToken,
    answer: &(dyn Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Sync),
) -> io::Result<()> {
    let (watch, closer) = (socket(&stream).watch(), socket(&stream).closer());
    // Locked while a request that changes something is handled.
    let changing = Mutex::new(());
    let service = service_fn(|mut request: Request<Incoming>| async {
        request.extensions_mut().insert(closer.clone());
        let _guard = if request.method().is_safe() {
            None
        } else {
            Some(changing.lock().await)
        };
        Ok::<_, Infallible>(match head_bytes(&request) {
            ..=MAX_HEAD_BYTES => answer(request).await,
            _ => head_too_large(),
        })
    });
    let connection = http1::Builder::new()
        // Without a timer the head's deadline has no effect.
        .timer(TokioTimer::new())
        .header_read_timeout(defaults::HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        // A client that has shut down its direction still wants the reply.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut abandoned = std::pin::pin!(async {
        watch.closed().await;
        drop(changing.lock().await);
    });
    let ended = select! {
        // What has come before the end is looked at first.
        biased;
        ended = connection.as_mut() => ended,
        () = abandoned.as_mut() => return Ok(()),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            select! {
                ended = connection => ended,
                () = abandoned => return Ok(()),
            }
        }
    };
    if ended.is_err() {
        // The client may still be sending when it gets an error reply.
        let _ = timeout(REFUSAL_TIMEOUT, watch.drain()).await;
    }
    ended.map_err(io::Error::other)
}

/// The socket below TLS, or the stream itself.
pub(crate) fn socket(stream: &Transport) -> &Stream {
    match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => stream.get_ref().0,
    }
}

/// The size of a head, without optional white space. Hyper's own limit is that of a buffer, which may
/// contain twice as much when the head is complete.
fn head_bytes(request: &Request<Incoming>) -> usize {
    let uri = request.uri().path_and_query();
    let line = request.method().as_str().len() + uri.map_or(0, |uri| uri.as_str().len());
    let headers = request.headers().iter();
    headers.fold(line, |sum, (name, value)| {
        sum + name.as_str().len() + value.len() + ": \r\n".len()
    })
}

fn head_too_large() -> Reply {
    let text = format!("the head is larger than {} bytes", MAX_HEAD_BYTES);
    let mut reply =
        ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text).into_plain_reply();
    let close = HeaderValue::from_static("close");
    reply.headers_mut().insert(header::CONNECTION, close);
    reply
}
