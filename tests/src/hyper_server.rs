//! A server by hyper, for agents that only some requests need: HTTP/1.1 or 2, by how a client begins.

use std::{convert::Infallible, io, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::sleep,
};

/// Serves `answer` on `socket` until the returned tasks are dropped.
pub fn hyper_server<A, F, B>(socket: &Path, answer: A) -> JoinSet<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let listener = UnixListener::bind(socket).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            connections.spawn(async move {
                let service = service_fn(answer);
                // A client that goes is no matter.
                if is_http2(&stream).await {
                    let server = http2::Builder::new(TokioExecutor::new());
                    let served = server.serve_connection(TokioIo::new(stream), service);
                    let _ = served.await;
                } else {
                    let server = http1::Builder::new();
                    let served = server.serve_connection(TokioIo::new(stream), service);
                    let _ = served.await;
                }
            });
        }
    });
    tasks
}

async fn is_http2(stream: &UnixStream) -> bool {
    let mut begin = [0; 3];
    loop {
        stream.readable().await.unwrap();
        match recv(stream.as_raw_fd(), &mut begin, MsgFlags::MSG_PEEK) {
            Ok(3) => return &begin == b"PRI",
            Ok(0) => return false,
            _ => sleep(Duration::from_millis(1)).await,
        }
    }
}
