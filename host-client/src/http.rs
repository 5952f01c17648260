//! Typed requests and replies, in LXD's envelopes.
//!
//! Over HTTP/2 where the agent speaks it: all requests are streams of one connection ([`http2`]). TLS agrees
//! on it (ALPN); without TLS, the agent's extensions say so.
//!
//! Else over HTTP/1.1: at most one connection is kept alive, and a request uses the idle one or opens its
//! own. Only requests that change nothing use an idle connection, because only they may be sent again if the
//! agent closed it meanwhile; and only on the runtime where that connection was made.

pub(crate) mod http2;

use std::{
    error::Error,
    io, iter,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body, Incoming},
    ext::Protocol,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use vsock_agent_transport::http::Connection;

use self::http2::{Failed, Http2, Pool, RequestBody, State, UpgradedStream};
use crate::{
    connect::{AgentStream, Connector},
    error::{Cause, ClientError, ConnectError, bounded},
    protocol::{
        envelope::{Envelope, EnvelopeKind},
        path,
    },
    runtime::OfRuntime,
    tls,
};

/// Default time limit for the head of a reply, and for its body.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest body of a reply, in bytes. The longest is a list of operations with their commands; a
/// request may have 4 MiB.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// Most values in the JSON of a reply. A body of many small ones (`[0,0,…`) needs more than twenty
/// times its size when it is parsed.
const MAX_JSON_VALUES: usize = 250_000;

/// Longest text quoted from a body that is not an envelope, in characters.
const MAX_QUOTED_CHARS: usize = 300;

/// An agent's HTTP interface.
#[derive(Debug)]
pub(crate) struct Http {
    connector: Connector,
    answer_timeout: Duration,
    /// Time after which an agent that sends nothing on the HTTP/2 connection is lost.
    silence: Duration,
    idle: Mutex<Option<OfRuntime<Connection>>>,
    pool: Pool,
    /// Whether HTTP/2 is never used.
    is_http1: bool,
}

/// A request to an agent.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// A JSON body.
    pub(crate) body: Option<Vec<u8>>,
    /// The action, for errors.
    pub(crate) during: &'static str,
    /// Added to the time limit for the head of the reply.
    pub(crate) extra_time: Duration,
    /// Added to the usual headers.
    pub(crate) headers: HeaderMap,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>, during: &'static str) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
            during,
            extra_time: Duration::ZERO,
            headers: HeaderMap::new(),
        }
    }

    /// A call that changes something, with a JSON body.
    pub(crate) fn change(
        method: Method,
        path: impl Into<String>,
        body: impl Into<Option<Vec<u8>>>,
        during: &'static str,
    ) -> Self {
        Self {
            method,
            body: body.into(),
            ..Self::get(path, during)
        }
    }

    /// Adds to the time limit for the reply.
    pub(crate) fn with_extra_time(mut self, extra_time: Duration) -> Self {
        self.extra_time = extra_time;
        self
    }
}

impl Http {
    pub(crate) fn new(connector: Connector, answer_timeout: Duration, silence: Duration) -> Self {
        Self {
            connector,
            answer_timeout,
            silence,
            idle: Mutex::new(None),
            pool: Pool::default(),
            is_http1: false,
        }
    }

    /// The same, which never uses HTTP/2.
    pub(crate) fn without_http2(self) -> Self {
        Self {
            is_http1: true,
            ..self
        }
    }

    /// The HTTP/2 connection, opened if there is none. `None` if the agent does not speak HTTP/2. Without
    /// TLS the caller knows that it does.
    ///
    /// # Errors
    ///
    /// Those of connecting.
    pub(crate) async fn http2(&self) -> Result<Option<Http2>, ClientError> {
        if self.is_http1 {
            return Ok(None);
        }
        let mut state = self.pool.lock().await;
        if let Some(open) = state.usable() {
            return Ok(Some(open));
        }
        if state.is_refused() {
            return Ok(None);
        }
        let mut attempts = self.connector.attempts_for_http2();
        loop {
            let stream = attempts.connect().await?;
            if !stream.is_http2() {
                *state = State::Refused(Instant::now());
                self.keep(self.open(stream).await?);
                return Ok(None);
            }
            match self.start_http2(stream).await? {
                Ok(open) => {
                    *state = State::Open(open.clone());
                    // No call uses it any more.
                    drop(self.take_idle());
                    return Ok(Some(open));
                }
                Err(cause) => {
                    attempts
                        .failed(ConnectError::ClosedUnanswered(cause))
                        .await?;
                }
            }
        }
    }

    /// The HTTP/2 connection, if it is open.
    pub(crate) async fn open_http2(&self) -> Option<Http2> {
        self.pool.lock().await.usable()
    }

    /// Uses a connection that was made elsewhere.
    #[cfg(feature = "relay")]
    pub(crate) async fn adopt(&self, stream: AgentStream) -> Result<(), ClientError> {
        let open = Http2::start(stream, self.silence).await;
        let open = open.map_err(|error| self.lost("starting HTTP/2", error))?;
        *self.pool.lock().await = State::Open(open);
        Ok(())
    }

    /// Starts HTTP/2, and checks without TLS that the agent answers: a proxy or monitor may accept
    /// connections before the agent is running. The inner error means that it does not.
    async fn start_http2(&self, stream: AgentStream) -> Result<Result<Http2, Cause>, ClientError> {
        let mut open = match Http2::start(stream, self.silence).await {
            Ok(open) => open,
            Err(error) if is_unanswered(&error) => return Ok(Err(error.into())),
            Err(error) => return Err(self.lost("starting HTTP/2", error)),
        };
        if self.connector.is_answered() {
            return Ok(Ok(open));
        }
        let request = http2_request(&Call::get(path::ROOT, "looking for the agent"));
        Ok(
            match timeout(self.answer_timeout, open.send(request)).await {
                Ok(Err(failed)) => Err(ended(failed.error)),
                // One that is silent is found out by the call.
                Ok(Ok(_)) | Err(_) => Ok(open),
            },
        )
    }

    /// The HTTP/2 connection for a call: without TLS only one that is open, because only the agent's
    /// extensions say whether it speaks HTTP/2.
    async fn http2_for_call(&self) -> Result<Option<Http2>, ClientError> {
        if self.connector.is_answered() {
            return self.http2().await;
        }
        Ok(self.open_http2().await)
    }

    /// Forgets a connection that has failed.
    pub(crate) async fn discard(&self, failed: &Http2) {
        self.pool.discard(failed).await;
    }

    /// Sends a request on the HTTP/2 connection, and waits for the head of the reply.
    /// On a connection that has ended before anything was sent, it is sent once more, on a new one.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silent`] and [`ClientError::ConnectionLost`]. The request may have been handled then.
    pub(crate) async fn send_http2(
        &self,
        connection: &mut Http2,
        mut request: Request<RequestBody>,
        during: &'static str,
        after: Duration,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut is_retried = false;
        loop {
            let failed = match timeout(after, connection.send(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(failed)) => failed,
                Err(_) => {
                    // It may be dead: the next call has another.
                    self.discard(connection).await;
                    return Err(ClientError::silent(during, after));
                }
            };
            self.discard(connection).await;
            let Failed {
                error,
                alert,
                unsent,
            } = *failed;
            match unsent {
                Some(again) if !is_retried && alert.is_none() => {
                    is_retried = true;
                    request = again;
                    let Some(new) = self.http2().await? else {
                        return Err(ClientError::lost(during, ended(error)));
                    };
                    *connection = new;
                }
                _ => return Err(self.lost_http2(during, error, alert)),
            }
        }
    }

    /// Makes a call on the HTTP/2 connection. One that changes nothing is made again if the connection ends
    /// without a reply, until the deadline for connecting.
    async fn call_http2(
        &self,
        mut connection: Http2,
        call: &Call,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let after = self.answer_timeout.saturating_add(call.extra_time);
        let mut attempts = self.connector.attempts();
        loop {
            let request = http2_request(call);
            let sent = self.send_http2(&mut connection, request, call.during, after);
            match sent.await {
                Ok(response) => {
                    let status = response.status();
                    let body = self.read_body(response, call.during).await?;
                    return Ok((status, body));
                }
                Err(ClientError::ConnectionLost {
                    source: Some(source),
                    ..
                }) if call.method == Method::GET => {
                    attempts
                        .failed(ConnectError::ClosedUnanswered(source))
                        .await?;
                }
                Err(error) => return Err(error),
            }
            let Some(again) = self.http2_for_call().await? else {
                let sent = self.send_until_answered(call).await?;
                return self.finish(sent, call).await;
            };
            connection = again;
        }
    }

    /// The error for a request whose HTTP/2 connection ended.
    fn lost_http2(
        &self,
        during: &'static str,
        error: Option<hyper::Error>,
        alert: Option<String>,
    ) -> ClientError {
        match alert {
            Some(alert) => ClientError::IdentityRefused {
                endpoint: self.connector.endpoint().clone(),
                source: io::Error::other(alert),
            },
            None => ClientError::lost(during, ended(error)),
        }
    }

    /// Time limit for the head of a reply.
    pub(crate) const fn answer_timeout(&self) -> Duration {
        self.answer_timeout
    }

    /// Reads the envelope of a reply.
    pub(crate) async fn read_reply(
        &self,
        response: Response<Incoming>,
        during: &'static str,
    ) -> Result<Envelope<Value>, ClientError> {
        let status = response.status();
        let body = self.read_body(response, during).await?;
        take_envelope(status, &body)
    }

    fn keep(&self, connection: Connection) {
        let connection = OfRuntime::new(connection);
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    pub(crate) const fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Makes a call and returns its envelope.
    pub(crate) async fn call(&self, call: Call) -> Result<Envelope<Value>, ClientError> {
        let (status, body) = self.call_raw(call).await?;
        take_envelope(status, &body)
    }

    /// Makes a call and returns the status and the body of the reply, whatever they are.
    pub(crate) async fn call_raw(&self, call: Call) -> Result<(StatusCode, Bytes), ClientError> {
        if let Some(connection) = self.http2_for_call().await? {
            return self.call_http2(connection, &call).await;
        }
        let sent = if call.method != Method::GET {
            let connection = self.connect_for_change().await?;
            self.send_once(connection, &call).await?
        } else if let Some(connection) = self.take_idle()
            && let Ok(sent) = self.send(connection, &call).await?
        {
            sent
        } else {
            self.send_until_answered(&call).await?
        };
        self.finish(sent, &call).await
    }

    /// Makes a call with a single attempt to connect.
    pub(crate) async fn call_once(&self, call: Call) -> Result<Envelope<Value>, ClientError> {
        self.call_over(self.connector.connect_once().await?, call)
            .await
    }

    /// Makes a call on a new connection, once.
    pub(crate) async fn call_over(
        &self,
        stream: AgentStream,
        call: Call,
    ) -> Result<Envelope<Value>, ClientError> {
        let connection = self.open(stream).await?;
        self.call_on(connection, &call).await
    }

    /// Makes a call on a connection, once.
    pub(crate) async fn call_on(
        &self,
        connection: Connection,
        call: &Call,
    ) -> Result<Envelope<Value>, ClientError> {
        let sent = self.send_once(connection, call).await?;
        let (status, body) = self.finish(sent, call).await?;
        take_envelope(status, &body)
    }

    /// Sends a call on a connection, once, and waits for the head of the reply.
    async fn send_once(&self, connection: Connection, call: &Call) -> Result<Sent, ClientError> {
        let sent = self.send(connection, call).await?;
        sent.map_err(|error| self.lost(call.during, error))
    }

    /// A connection for a call that must not be made twice, checked with a request before: a proxy or
    /// monitor may accept connections before the agent is running.
    pub(crate) async fn connect_for_change(&self) -> Result<Connection, ClientError> {
        if !self.connector.is_answered() {
            let call = Call::get(path::SERVER, "looking for the agent");
            let sent = self.send_until_answered(&call).await?;
            if let (_, Some(connection)) = self.read(sent, &call).await {
                return Ok(connection);
            }
            // It closes after each answer.
        }
        self.open(self.connector.connect().await?).await
    }

    /// Sends a call that changes nothing. Repeats it until there is a reply, or until the deadline for
    /// connecting.
    async fn send_until_answered(&self, call: &Call) -> Result<Sent, ClientError> {
        let mut attempts = self.connector.attempts();
        loop {
            let connection = self.open(attempts.connect().await?).await?;
            match self.send(connection, call).await? {
                Ok(sent) => return Ok(sent),
                Err(error) if is_unanswered(&error) => {
                    attempts
                        .failed(ConnectError::ClosedUnanswered(error.into()))
                        .await?;
                }
                Err(error) => return Err(self.lost(call.during, error)),
            }
        }
    }

    /// Sends a call and waits for the head of the reply. The inner error means that the connection ended
    /// without one.
    async fn send(
        &self,
        connection: Connection,
        call: &Call,
    ) -> Result<Result<Sent, hyper::Error>, ClientError> {
        let after = self.answer_timeout.saturating_add(call.extra_time);
        let sent = timeout(after, connection.send(request(call))).await;
        sent.map_err(|_| ClientError::silent(call.during, after))
    }

    /// Reads a reply, and keeps its connection for the next call.
    async fn finish(&self, sent: Sent, call: &Call) -> Result<(StatusCode, Bytes), ClientError> {
        let (reply, connection) = self.read(sent, call).await;
        if let Some(connection) = connection {
            self.keep(connection);
        }
        reply
    }

    /// Reads a reply. Returns its connection too, if that can be used again.
    async fn read(
        &self,
        (response, connection): Sent,
        call: &Call,
    ) -> (Result<(StatusCode, Bytes), ClientError>, Option<Connection>) {
        let status = response.status();
        let reply = match self.read_body(response, call.during).await {
            Ok(body) => Ok((status, body)),
            Err(error) => return (Err(error), None),
        };
        let Some(mut connection) = connection else {
            return (reply, None);
        };
        let is_ready = connection.ready().await.is_ok();
        (reply, is_ready.then_some(connection))
    }

    /// Asks the agent to speak `protocol` on a connection of its own. Like any GET, the request has no
    /// effect before there is a reply.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &str,
        extra: &[(&'static str, String)],
        during: &'static str,
    ) -> Result<(AgentStream, HeaderMap), ClientError> {
        self.upgrade_with(Call::get(path, during), protocol, extra)
            .await
    }

    /// As [`upgrade`](Self::upgrade), with a stream of the HTTP/2 connection in place of a connection of its
    /// own, by extended CONNECT (RFC 8441). `None` if there is no
    /// such connection, or it ended without a reply.
    pub(crate) async fn connect_stream(
        &self,
        call: &Call,
        protocol: &'static str,
    ) -> Result<Option<AgentStream>, ClientError> {
        let Some(mut connection) = self.http2_for_call().await? else {
            return Ok(None);
        };
        let after = self.answer_timeout;
        if !connection.is_answered() {
            let request = http2_request(&Call::get(path::ROOT, call.during));
            let sent = self.send_http2(&mut connection, request, call.during, after);
            if sent.await.is_err() {
                return Ok(None);
            }
        }
        let mut request = http2_request(call);
        *request.method_mut() = Method::CONNECT;
        let extensions = request.extensions_mut();
        extensions.insert(Protocol::from_static(protocol));
        let sent = self.send_http2(&mut connection, request, call.during, after);
        let mut response = match sent.await {
            Err(ClientError::ConnectionLost { .. }) => return Ok(None),
            sent => sent?,
        };
        if response.status() != StatusCode::OK {
            self.read_reply(response, call.during).await?;
            let text = "a stream that is no stream";
            return Err(ClientError::protocol(text));
        }
        let upgraded = hyper::upgrade::on(&mut response)
            .await
            .map_err(|error| self.lost(call.during, error))?;
        let stream = UpgradedStream::new(upgraded, connection);
        Ok(Some(AgentStream::stream(Box::new(stream))))
    }

    /// As [`upgrade`](Self::upgrade), by any call. One that changes something is sent once.
    pub(crate) async fn upgrade_with(
        &self,
        mut call: Call,
        protocol: &str,
        extra: &[(&'static str, String)],
    ) -> Result<(AgentStream, HeaderMap), ClientError> {
        let during = call.during;
        let headers = &mut call.headers;
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, header_value(protocol)?);
        for (name, value) in extra {
            headers.insert(*name, header_value(value)?);
        }
        let (mut response, _connection) = if call.method == Method::GET {
            self.send_until_answered(&call).await?
        } else {
            let connection = self.connect_for_change().await?;
            self.send_once(connection, &call).await?
        };
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = self.read_body(response, during).await?;
            return Err(match take_envelope(status, &body) {
                Err(error) => error,
                Ok(_) => {
                    ClientError::protocol(format!("{status} where 101 Switching Protocols was due"))
                }
            });
        }
        let upgrade = response.headers().get(UPGRADE).map(HeaderValue::as_bytes);
        if !upgrade.is_some_and(|value| value.eq_ignore_ascii_case(protocol.as_bytes())) {
            return Err(ClientError::protocol(format!(
                "101 Switching Protocols without the upgrade to {protocol}"
            )));
        }
        let headers = std::mem::take(response.headers_mut());
        let upgraded = hyper::upgrade::on(&mut response)
            .await
            .map_err(|error| self.lost(during, error))?;
        let parts = upgraded
            .downcast::<TokioIo<AgentStream>>()
            .map_err(|_| ClientError::protocol("an upgraded connection that is not ours"))?;
        let mut stream = parts.io.into_inner();
        stream.early = parts.read_buf;
        Ok((stream, headers))
    }

    async fn open(&self, stream: AgentStream) -> Result<Connection, ClientError> {
        Connection::start(stream)
            .await
            .map_err(|error| self.lost("starting HTTP", error))
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = idle.take_if(|idle| idle.is_here())?.into_inner();
        connection.is_ready().then_some(connection)
    }

    /// The error for a failed exchange.
    fn lost(&self, during: &'static str, error: hyper::Error) -> ClientError {
        match io_error(&error) {
            Some(source) if tls::is_identity_alert(source) => ClientError::IdentityRefused {
                endpoint: self.connector.endpoint().clone(),
                source: io::Error::other(source.to_string()),
            },
            Some(_) => ClientError::lost(during, error),
            None if is_closed(&error) => ClientError::lost(during, error),
            // Not HTTP, or data before the request, such as the banner of SSH.
            None => ClientError::protocol_because(
                "the answer is not HTTP (an agent that uses TLS answers like that to --plain)",
                error,
            ),
        }
    }

    /// Reads a body, within its limit.
    async fn read_body(
        &self,
        response: Response<Incoming>,
        during: &'static str,
    ) -> Result<Bytes, ClientError> {
        let mut body = response.into_body();
        let expected = body.size_hint().lower();
        let too_large = || ClientError::TooLarge {
            endpoint: None,
            what: "the agent's answer",
            limit: u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX),
        };
        if usize::try_from(expected).map_or(true, |bytes| bytes > MAX_BODY_BYTES) {
            return Err(too_large());
        }
        let reading = async {
            // One buffer: the frames may be very many and of one byte each.
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| ClientError::lost(during, error))?;
                let data = frame.into_data().unwrap_or_default();
                if bytes.len() + data.len() > MAX_BODY_BYTES {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(bytes.freeze())
        };
        let after = self.answer_timeout;
        let read = timeout(after, reading).await;
        read.unwrap_or(Err(ClientError::silent(during, after)))
    }
}

/// The head of a reply, and its connection unless that ended with it.
type Sent = (Response<Incoming>, Option<Connection>);

/// Whether a connection ended, and not because of what came on it.
fn is_closed(error: &hyper::Error) -> bool {
    error.is_canceled()
        || error.is_closed()
        || error.is_incomplete_message()
        || error.is_body_write_aborted()
}

/// Whether a connection was closed before a reply, and not because our certificate was refused.
fn is_unanswered(error: &hyper::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
    };
    match io_error(error) {
        None => is_closed(error),
        Some(cause) => matches!(
            cause.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
        ),
    }
}

/// The I/O error that caused an HTTP error.
fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let source = |&error: &&'a (dyn Error + 'static)| error.source();
    iter::successors(Some(error), source).find_map(<dyn Error>::downcast_ref)
}

/// Why a connection ended.
fn ended(error: Option<hyper::Error>) -> Cause {
    error.map_or_else(|| "the connection ended".into(), Into::into)
}

/// A request for a stream of an HTTP/2 connection.
pub(crate) fn http2_request(call: &Call) -> Request<RequestBody> {
    let mut request = request(call).map(|body| body.map_err(|never| match never {}).boxed_unsync());
    // The authority and scheme are in the URI, not in a header (RFC 9113, section 8.3.1).
    request.headers_mut().remove(HOST);
    let uri = format!("http://agent{}", call.path);
    *request.uri_mut() = uri.parse().unwrap_or_default();
    request
}

fn request(call: &Call) -> Request<Full<Bytes>> {
    let body = call.body.clone().unwrap_or_default();
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = call.method.clone();
    // Every path is made of constants, UUIDs and hexadecimal secrets; the root is never wrong.
    *request.uri_mut() = call.path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("agent"));
    if call.body.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    headers.extend(call.headers.clone());
    request
}

fn header_value(value: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(value)
        .map_err(|error| ClientError::protocol_because("a header has no value", error))
}

/// Checks that a body is not of more values than are read.
pub(crate) fn check_values(status: StatusCode, body: &[u8]) -> Result<(), ClientError> {
    // Also counts these characters inside strings, which is harmless.
    let values = body
        .iter()
        .filter(|byte| matches!(byte, b',' | b'[' | b'{'));
    if values.count() > MAX_JSON_VALUES {
        return Err(ClientError::protocol(format!(
            "{status} with a body of more than {MAX_JSON_VALUES} values"
        )));
    }
    Ok(())
}

/// Parses a reply of any status as JSON.
pub(crate) fn take_json(status: StatusCode, body: &[u8]) -> Result<Value, ClientError> {
    check_values(status, body)?;
    serde_json::from_slice(body).map_err(|error| {
        if is_refusal(status) {
            return refused(status, body);
        }
        ClientError::protocol_because(format!("{status} with a body that is not JSON"), error)
    })
}

/// Parses a reply that is text.
pub(crate) fn take_text(status: StatusCode, body: &[u8]) -> Result<String, ClientError> {
    if is_refusal(status) {
        return take_envelope(status, body).and(Err(refused(status, body)));
    }
    String::from_utf8(body.to_vec())
        .map_err(|error| ClientError::protocol_because("the text is not UTF-8", error))
}

fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// The error of a refusal without an envelope.
fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    ClientError::Agent {
        endpoint: None,
        status: status.as_u16(),
        text: quote(status, body),
    }
}

/// Parses a reply: a result, an error of the agent, or a violation of the protocol.
pub(crate) fn take_envelope(
    status: StatusCode,
    body: &[u8],
) -> Result<Envelope<Value>, ClientError> {
    check_values(status, body)?;
    match serde_json::from_slice::<Envelope<Value>>(body) {
        Ok(envelope) if envelope.kind == EnvelopeKind::Error => Err(ClientError::Agent {
            endpoint: None,
            status: match envelope.error_code {
                0 => status.as_u16(),
                code => code,
            },
            text: bounded(&envelope.error),
        }),
        Ok(_) | Err(_) if is_refusal(status) => Err(refused(status, body)),
        Ok(envelope) => Ok(envelope),
        Err(error) => Err(ClientError::protocol_because(
            format!("{status} with a body that is not an envelope"),
            error,
        )),
    }
}

/// The beginning of a plain text answer, or the words for its status.
fn quote(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text: String = text.trim().chars().take(MAX_QUOTED_CHARS).collect();
    if !text.is_empty() {
        text
    } else {
        status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned()
    }
}

/// Reads the metadata of an answer as `T`.
pub(crate) fn metadata<T: serde::de::DeserializeOwned>(
    envelope: Envelope<Value>,
    what: &str,
) -> Result<T, ClientError> {
    serde_json::from_value(envelope.metadata).map_err(|error| {
        ClientError::protocol_because(format!("{what} is not what it should be"), error)
    })
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::UnixStream, task::yield_now};

    use super::*;
    use crate::{Endpoint, Security};

    #[test]
    fn an_error_envelope_is_an_agent_error() {
        let body = br#"{"type":"error","status":"","status_code":0,"operation":"","error_code":404,"error":"not found","metadata":null}"#;
        match take_envelope(StatusCode::NOT_FOUND, body) {
            Err(ClientError::Agent { status, text, .. }) => {
                assert_eq!((status, text.as_str()), (404, "not found"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_envelope_is_an_agent_error_with_any_status() {
        let body = br#"{"type":"error","error":"boom","metadata":null}"#;
        assert!(matches!(
            take_envelope(StatusCode::OK, body),
            Err(ClientError::Agent { status: 200, .. })
        ));
    }

    #[test]
    fn a_plain_text_error_is_quoted() {
        match take_envelope(StatusCode::NOT_FOUND, b"404 page not found\n") {
            Err(ClientError::Agent {
                status: 404, text, ..
            }) => assert_eq!(text, "404 page not found"),
            other => panic!("{other:?}"),
        }
        match take_envelope(StatusCode::NOT_FOUND, b"") {
            Err(ClientError::Agent { text, .. }) => assert_eq!(text, "Not Found"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_success_without_an_envelope_breaks_the_protocol() {
        for body in [&b"<html>"[..], b"", b"[]", br#"{"type":"sync"}"#] {
            assert!(matches!(
                take_envelope(StatusCode::OK, body),
                Err(ClientError::Protocol { .. })
            ));
        }
    }

    #[test]
    fn a_body_of_very_many_values_is_not_read() {
        let body = format!(
            r#"{{"type":"sync","metadata":[0{}]}}"#,
            ",0".repeat(MAX_JSON_VALUES)
        );
        assert!(matches!(
            take_envelope(StatusCode::OK, body.as_bytes()),
            Err(ClientError::Protocol { .. })
        ));
    }

    #[test]
    fn metadata_of_another_type_breaks_the_protocol() {
        let envelope = Envelope::sync(Value::from("text"));
        let read = metadata::<crate::protocol::server_info::ServerInfo>(envelope, "the answer");
        assert!(matches!(read, Err(ClientError::Protocol { .. })));
    }

    #[tokio::test]
    async fn a_later_call_gets_the_reason_why_the_connection_ended() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = AgentStream::from(ours);
        let connection = Connection::start(stream).await.unwrap();
        theirs.write_all(b"an answer to nothing").await.unwrap();
        while !connection.is_closed() {
            yield_now().await;
        }
        let sent = connection.send(request(&Call::get("/1.0", "asking"))).await;
        let error = sent.unwrap_err();
        assert!(!error.is_canceled() && !is_unanswered(&error));
        let endpoint = Endpoint::Unix("/nowhere".into());
        let connector = Connector::new(endpoint, Security::Plain, Duration::ZERO);
        let meant = Http::new(connector, ANSWER_TIMEOUT, ANSWER_TIMEOUT).lost("asking", error);
        assert!(matches!(meant, ClientError::Protocol { .. }), "{meant:?}");
    }
}
