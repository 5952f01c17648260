//! One process keeps the HTTP/2 connection to an agent, and others make their calls and commands on it.
//!
//! The other process speaks HTTP/2 on a socket of this computer, and each of its streams is passed on: heads,
//! bodies and resets, both ways, with the windows of HTTP/2 on both sides. So it uses this library as with a
//! connection of its own, and its errors are the same.
//!
//! The processes must be of the same user, and have said before which agent is meant.

use std::{io, os::unix::net, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    agent::Agent,
    client::Client,
    connect::Connector,
    endpoint::Endpoint,
    error::ClientError,
    http::{Call, http2::RequestBody, http2_request},
    protocol::path,
    timeouts::Timeouts,
    tls::Security,
};

/// Most streams of one process at a time: a command is one, and its process may make calls beside it.
const MAX_STREAMS: u32 = 8;

/// Bytes of a stream, and of all streams of a process, that are not passed on yet. Those of a command have
/// their own windows: [`exec::stream`](crate::protocol::exec::stream).
const WINDOW_BYTES: (u32, u32) = (1024 * 1024, 4 * 1024 * 1024);

/// Largest head of a request, in bytes: that of the agent.
const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// What the errors of a relayed request are about. The other process has its own words.
const DURING: &str = "passing on a request";

/// A year, which can be added to any point in time.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Time for an agent to answer on a connection that was not used for a while.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

impl Client {
    /// A client for a process that keeps the connection for [others](Client::relay): it tries once to
    /// connect, and logs no warning.
    #[must_use]
    pub fn for_relay(endpoint: Endpoint, security: Security, timeouts: Timeouts) -> Self {
        let connector = Connector::new(endpoint, security, timeouts.connect);
        Self {
            agent: Arc::new(Agent::new(connector.for_daemon().once(), timeouts)),
        }
    }

    /// A client whose connection is `socket`, at whose other end a process [relays](Client::relay). When that
    /// connection has ended, it connects to the endpoint itself. What needs a connection of its own, as file
    /// sessions, events and ports of the guest, has one.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the socket closes.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] if the socket cannot be used.
    pub async fn over_relay(
        socket: net::UnixStream,
        endpoint: Endpoint,
        security: Security,
        timeouts: Timeouts,
    ) -> Result<Self, ClientError> {
        let connector = Connector::new(endpoint, security, timeouts.connect);
        let stream = connector
            .adopt(socket)
            .map_err(|error| ClientError::lost(DURING, error))?;
        let agent = Agent::new(connector, timeouts);
        agent.http.adopt(stream).await?;
        Ok(Self {
            agent: Arc::new(agent),
        })
    }

    /// Opens the HTTP/2 connection if there is none, and has the agent answer on it if `is_checked` or if it
    /// is new. False if the agent does not speak HTTP/2.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the connection stays, or is not made.
    ///
    /// # Errors
    ///
    /// Those of connecting, and [`ClientError::Silent`] or [`ClientError::ConnectionLost`] if the agent does
    /// not answer. The connection is closed then.
    pub async fn warm_up(&self, is_checked: bool) -> Result<bool, ClientError> {
        let is_open = self.agent.http.open_http2().await.is_some();
        let Some(mut connection) = self.agent.http2().await? else {
            return Ok(false);
        };
        if is_open && !is_checked {
            return Ok(true);
        }
        let within = if is_open {
            ANSWERS_WITHIN
        } else {
            self.agent.http.answer_timeout()
        };
        let request = http2_request(&Call::get(path::ROOT, DURING));
        let http = &self.agent.http;
        let response = http
            .send_http2(&mut connection, request, DURING, within)
            .await?;
        // The rest of the reply is not needed, and resets the stream if there is one.
        drop(response);
        Ok(true)
    }

    /// Serves another process: passes on each stream of the HTTP/2 connection `socket` to the agent, until
    /// that process closes it. A stream fails with a reset if the agent cannot be reached any more.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the connection closes, and its streams are reset on both sides.
    ///
    /// # Errors
    ///
    /// Why the connection to the other process ended, if that did not close it.
    pub async fn relay<S>(&self, socket: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let service = service_fn(|request| pass_on(Arc::clone(&self.agent), request));
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES)
            .initial_stream_window_size(WINDOW_BYTES.0)
            .initial_connection_window_size(WINDOW_BYTES.1)
            .serve_connection(TokioIo::new(socket), service)
            .await
            .map_err(io::Error::other)
    }
}

/// Passes on one request. The body of the reply is passed on as it comes.
async fn pass_on(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, ClientError> {
    if request.method() == Method::CONNECT {
        return Err(ClientError::unsupported("pass on a connection"));
    }
    let request: Request<RequestBody> =
        request.map(|body| body.map_err(io::Error::other).boxed_unsync());
    let lost = || ClientError::lost_somehow(DURING);
    let mut connection = agent.http2().await?.ok_or_else(lost)?;
    // The other process has its own time limit: it resets the stream then, which drops this future.
    let sent = agent
        .http
        .send_http2(&mut connection, request, DURING, NO_LIMIT);
    sent.await
}
