//! HTTP/1.1 on one connection, with the limits that every listener has.

use std::{convert::Infallible, future::Future, io};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
};
use tokio_util::sync::CancellationToken;

use crate::{defaults, reply::Reply};

/// Answers requests until the client leaves or `stop` is cancelled; the answer that is under way
/// is finished then.
///
/// # Errors
///
/// What ended the connection before its time.
pub(crate) async fn serve<S, A>(
    stream: S,
    stop: CancellationToken,
    answer: impl Fn(Request<Incoming>) -> A,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Reply>,
{
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
