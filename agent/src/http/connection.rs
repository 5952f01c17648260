//! HTTP/1.1 on one connection, with the limits that every listener has.
//!
//! Nothing here is generic: hyper is large, and its server is in the program once.

use std::{convert::Infallible, io};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{select, sync::Mutex, time::timeout};
use tokio_rustls::TlsStream;
use tokio_util::{either::Either, sync::CancellationToken};
use vsock_agent_transport::http::{MAX_HEAD_BYTES, MAX_HEADERS};

use crate::{
    defaults,
    http::{
        listen::Stream,
        reply::{ApiError, Reply},
    },
};

/// What HTTP is spoken on, by server and client: a plain connection, or one with TLS.
pub(crate) type Transport = Either<Stream, TlsStream<Stream>>;

/// Answers requests until the client leaves or `stop` is cancelled; the answer that is under way
/// is finished then. A client that has only ended its own side still gets its answer. One that has
/// closed the connection gets none, and waiting for it ends; what it asked to be changed is done.
///
/// # Errors
///
/// What ended the connection before its time.
pub(crate) async fn serve(
    stream: Transport,
    stop: CancellationToken,
    answer: &(dyn Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Sync),
) -> io::Result<()> {
    let watch = socket(&stream).watch();
    // Locked while something is changed.
    let changing = Mutex::new(());
    let service = service_fn(|request| async {
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
        // Without a timer the head's deadline would not be kept.
        .timer(TokioTimer::new())
        .header_read_timeout(defaults::HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        // A client that has said all it wants to say still wants the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut abandoned = std::pin::pin!(async {
        watch.left().await;
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
        // It may have been told why, in the middle of what it sends.
        let _ = timeout(defaults::REFUSAL_TIMEOUT, watch.drain()).await;
    }
    ended.map_err(io::Error::other)
}

/// What is under TLS, or the stream itself.
pub(crate) fn socket(stream: &Transport) -> &Stream {
    match stream {
        Either::Left(stream) => stream,
        Either::Right(stream) => stream.get_ref().0,
    }
}

/// The size of a head, as it was sent without what may be left out. Hyper's own limit is that of a
/// buffer, which may have had twice as much in it when the head was whole.
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
