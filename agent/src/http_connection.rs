//! HTTP/1.1 on one connection, with the limits that every listener has.
//!
//! Nothing here is generic: hyper is large, and its server is in the program once.

use std::{convert::Infallible, io};

use futures_util::future::BoxFuture;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::select;
use tokio_rustls::TlsStream;
use tokio_util::{either::Either, sync::CancellationToken};

use crate::{defaults, listen::Stream, reply::Reply};

/// What HTTP is spoken on, by server and client: a plain connection, or one with TLS.
pub(crate) type Transport = Either<Stream, TlsStream<Stream>>;

/// Answers requests until the client leaves or `stop` is cancelled; the answer that is under way
/// is finished then.
///
/// # Errors
///
/// What ended the connection before its time.
pub(crate) async fn serve(
    stream: Transport,
    stop: CancellationToken,
    answer: &(dyn Fn(Request<Incoming>) -> BoxFuture<'static, Reply> + Sync),
) -> io::Result<()> {
    let service = service_fn(|request| {
        let reply = answer(request);
        async { Ok::<_, Infallible>(reply.await) }
    });
    let connection = http1::Builder::new()
        // Without a timer the head's deadline would not be kept.
        .timer(TokioTimer::new())
        .header_read_timeout(defaults::HEAD_TIMEOUT)
        .max_buf_size(defaults::MAX_HEAD_BYTES)
        .max_headers(defaults::MAX_HEADERS)
        // A client that has said all it wants to say still wants the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}
