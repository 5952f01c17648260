//! One HTTP/1.1 connection to a server, and the task that drives it.

mod queue;

use std::pin::pin;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
    task::JoinSet,
};

pub use self::queue::{BodyQueue, QueuedBody, Window};

/// Largest head of a request or a reply, in bytes.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most headers of a request or a reply.
pub const MAX_HEADERS: usize = 64;

/// The name of HTTP/2 in ALPN (RFC 9113, section 3.2).
pub const ALPN_HTTP2: &[u8] = b"h2";

/// The name of HTTP/1.1 in ALPN (RFC 7301, section 6).
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// The first bytes of an HTTP/2 connection, as far as they tell it from HTTP/1.1 (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// An HTTP connection. `Drop` closes it, unless it was upgraded.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinSet<Result<(), hyper::Error>>,
}

impl Connection {
    /// Starts HTTP on a connected stream. Upgrades are possible.
    ///
    /// # Errors
    ///
    /// None in practice: nothing is sent yet.
    pub async fn start<S>(stream: S) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection.with_upgrades());
        Ok(Self { sender, driver })
    }

    /// Waits until another request can be sent.
    ///
    /// # Errors
    ///
    /// The error that ended the connection.
    pub async fn ready(&mut self) -> Result<(), hyper::Error> {
        self.sender.ready().await
    }

    /// Whether another request can be sent now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether the connection is known to have ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the reply as long as there is a connection. Returns
    /// the connection too, unless it ended with that reply; the body is driven by it.
    ///
    /// # Errors
    ///
    /// The error that ended the connection.
    pub async fn send(
        self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Option<Self>), hyper::Error> {
        let Self {
            mut sender,
            mut driver,
        } = self;
        let mut reply = pin!(sender.send_request(request));
        let (error, ended) = select! {
            biased;
            reply = reply.as_mut() => match reply {
                Ok(reply) => return Ok((reply, Some(Self { sender, driver }))),
                Err(error) if !error.is_canceled() => return Err(error),
                Err(error) => (error, driver.join_next().await),
            },
            ended = driver.join_next() => {
                // A request that is sent just when the connection ends stays in hyper's queue, and
                // its future pends, until this end of the queue is dropped (hyperium/hyper#4122).
                drop(sender);
                match reply.await {
                    Ok(reply) => return Ok((reply, None)),
                    Err(error) => (error, ended),
                }
            }
        };
        // A later request only learns that the connection has ended. The driver knows the reason, such
        // as a server that refused the client's certificate.
        match ended {
            Some(Ok(Err(reason))) => Err(reason),
            _ => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{hint, time::Duration};

    use tokio::{io::AsyncWriteExt, net::UnixStream, task::yield_now, time::timeout};

    use super::*;

    /// Connections that end while a request is being sent.
    const RACES: usize = 20_000;

    /// hyper by itself loses one in twenty thousand of these, on two processors.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_sent_when_the_connection_ends_fails() {
        for number in 0..RACES {
            let (ours, theirs) = UnixStream::pair().unwrap();
            drop(theirs);
            let connection = Connection::start(ours).await.unwrap();
            // The connection ends in another thread, a bit later.
            (0..256 + number % 256).for_each(|_| hint::spin_loop());
            let sent = connection.send(Request::new(Full::default()));
            let sent = timeout(Duration::from_secs(30), sent).await;
            assert!(sent.expect("an error in time").is_err());
        }
    }

    #[tokio::test]
    async fn a_later_request_gets_the_reason_why_the_connection_ended() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let connection = Connection::start(ours).await.unwrap();
        theirs.write_all(b"a reply to nothing").await.unwrap();
        while !connection.is_closed() {
            yield_now().await;
        }
        let error = connection
            .send(Request::new(Full::default()))
            .await
            .unwrap_err();
        assert!(!error.is_canceled(), "{error}");
    }
}
