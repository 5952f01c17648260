//! One typed request, one typed reply: HTTP/1.1 inside, envelopes taken off, errors sorted.
//!
//! Connections are kept alive one at a time: a request takes the idle one or makes its own, and
//! gives it back. Only requests that change nothing go over an idle connection, because only they
//! may be sent again if the agent closed it meanwhile.

use std::{
    error::Error,
    io,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{select, task::JoinSet, time::timeout};

use crate::{
    connect::{Connector, Stream, Upgraded},
    error::{ClientError, bounded},
    protocol::envelope::{Envelope, EnvelopeKind},
    tls,
};

/// How long an answer's head may take, for requests an agent answers at once.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the next piece of an answer's body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest body of an answer, in bytes. A list of operations with their environments is the
/// longest an agent has to say.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// Largest head of an answer, in bytes, and most headers in it.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;

/// Longest text quoted from a body that is not an envelope, in characters.
const MAX_QUOTED_CHARS: usize = 300;

/// An agent's HTTP interface.
#[derive(Debug)]
pub(crate) struct Http {
    connector: Connector,
    idle: Mutex<Option<Connection>>,
}

/// An HTTP connection and the task that drives it, which ends with it.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinSet<Result<(), hyper::Error>>,
}

impl Connection {
    async fn start(stream: Stream) -> Result<Self, hyper::Error> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection.with_upgrades());
        Ok(Self { sender, driver })
    }

    /// Waits for the head of the answer, as long as there is a connection. Gives back the connection,
    /// if it did not end with that answer.
    ///
    /// # Errors
    ///
    /// What ended the connection.
    async fn send(
        self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Option<Self>), hyper::Error> {
        let Self {
            mut sender,
            mut driver,
        } = self;
        let mut answer = pin!(sender.send_request(request));
        let (error, ended) = select! {
            biased;
            answer = answer.as_mut() => match answer {
                Ok(answer) => return Ok((answer, Some(Self { sender, driver }))),
                Err(error) if !error.is_canceled() => return Err(error),
                Err(error) => (error, driver.join_next().await),
            },
            ended = driver.join_next() => {
                // A request that comes just when the connection ends stays in hyper's queue, and
                // nobody is told, until this end of the queue is gone too (hyperium/hyper#4122).
                drop(sender);
                match answer.await {
                    Ok(answer) => return Ok((answer, None)),
                    Err(error) => (error, ended),
                }
            }
        };
        // One that comes later is told that the connection has ended, and not why: the agent may have
        // refused our certificate.
        match ended {
            Some(Ok(Err(reason))) => Err(reason),
            _ => Err(error),
        }
    }
}

/// What is asked of an agent.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// A JSON body.
    pub(crate) body: Option<Vec<u8>>,
    /// For error messages: what is going on.
    pub(crate) during: &'static str,
    /// How long the head of the answer may take.
    pub(crate) patience: Duration,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>, during: &'static str) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
            during,
            patience: ANSWER_TIMEOUT,
        }
    }

    /// Waits `patience` longer than usual for the answer.
    pub(crate) fn patiently(mut self, patience: Duration) -> Self {
        self.patience += patience;
        self
    }
}

impl Http {
    pub(crate) const fn new(connector: Connector) -> Self {
        Self {
            connector,
            idle: Mutex::new(None),
        }
    }

    pub(crate) const fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Makes a call and takes the envelope off.
    pub(crate) async fn call(&self, call: Call) -> Result<Envelope<Value>, ClientError> {
        let idle = match call.method {
            Method::GET => self.take_idle(),
            _ => None,
        };
        if let Some(connection) = idle
            && let Ok(answer) = self.call_over(connection, &call).await
        {
            return answer;
        }
        let connection = self.open(self.connector.connect().await?).await?;
        self.call_over(connection, &call)
            .await
            .unwrap_or_else(|error| Err(self.lost(call.during, error)))
    }

    /// Makes a call with a single attempt to connect.
    pub(crate) async fn call_impatiently(
        &self,
        call: Call,
    ) -> Result<Envelope<Value>, ClientError> {
        let connection = self.open(self.connector.connect_once().await?).await?;
        self.call_over(connection, &call)
            .await
            .unwrap_or_else(|error| Err(self.lost(call.during, error)))
    }

    /// Makes a call on a connection. The outer error says that no answer came at all.
    async fn call_over(
        &self,
        connection: Connection,
        call: &Call,
    ) -> Result<Result<Envelope<Value>, ClientError>, hyper::Error> {
        let request = request(call);
        let sent = timeout(call.patience, connection.send(request)).await;
        let Ok(sent) = sent else {
            return Ok(Err(ClientError::Silent {
                during: call.during,
                after: call.patience,
            }));
        };
        let (response, connection) = sent?;
        let status = response.status();
        let body = match read_body(response, call.during).await {
            Ok(body) => body,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(mut connection) = connection
            && connection.sender.ready().await.is_ok()
        {
            self.put_idle(connection);
        }
        Ok(take_envelope(status, &body))
    }

    /// Asks the agent to speak `protocol` on a connection of its own.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
        extra: &[(&'static str, String)],
        during: &'static str,
    ) -> Result<(Upgraded, http::HeaderMap), ClientError> {
        let connection = self.open(self.connector.connect().await?).await?;
        let mut request = request(&Call::get(path, during));
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(protocol));
        for (name, value) in extra {
            let value = HeaderValue::from_str(value)
                .map_err(|error| ClientError::protocol_because("a header has no value", error))?;
            headers.insert(*name, value);
        }
        let (mut response, _connection) = timeout(ANSWER_TIMEOUT, connection.send(request))
            .await
            .map_err(|_| ClientError::Silent {
                during,
                after: ANSWER_TIMEOUT,
            })?
            .map_err(|error| self.lost(during, error))?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = read_body(response, during).await?;
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
            .downcast::<TokioIo<Stream>>()
            .map_err(|_| ClientError::protocol("an upgraded connection that is not ours"))?;
        let upgraded = Upgraded {
            early: parts.read_buf,
            stream: parts.io.into_inner(),
        };
        Ok((upgraded, headers))
    }

    async fn open(&self, stream: Stream) -> Result<Connection, ClientError> {
        Connection::start(stream)
            .await
            .map_err(|error| self.lost("starting HTTP", error))
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.take()
            .filter(|connection| connection.sender.is_ready())
    }

    fn put_idle(&self, connection: Connection) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    /// What a failed exchange means.
    fn lost(&self, during: &'static str, error: hyper::Error) -> ClientError {
        if error.is_parse() || error.is_parse_status() {
            let hint = "the answer is not HTTP (an agent that uses TLS answers like that to \
                        --plain)";
            return ClientError::protocol_because(hint, error);
        }
        match take_io_error(&error) {
            Some(source) if tls::is_identity_alert(source) => ClientError::IdentityRefused {
                endpoint: self.connector.endpoint().clone(),
                source: io::Error::other(source.to_string()),
            },
            _ => ClientError::lost(during, error),
        }
    }
}

/// The I/O error an HTTP error was caused by.
fn take_io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(found) = current.downcast_ref::<io::Error>() {
            return Some(found);
        }
        cause = current.source();
    }
    None
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
    request
}

/// Reads a body, within its limit.
async fn read_body(
    response: Response<Incoming>,
    during: &'static str,
) -> Result<Bytes, ClientError> {
    let mut body = response.into_body();
    let expected = body.size_hint().lower();
    let too_large = || ClientError::TooLarge {
        what: "the agent's answer",
        limit: u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX),
    };
    if usize::try_from(expected).map_or(true, |bytes| bytes > MAX_BODY_BYTES) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    loop {
        let frame = timeout(BODY_TIMEOUT, body.frame())
            .await
            .map_err(|_| ClientError::Silent {
                during,
                after: BODY_TIMEOUT,
            })?;
        let Some(frame) = frame else {
            return Ok(bytes.freeze());
        };
        let frame = frame.map_err(|error| ClientError::lost(during, error))?;
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > MAX_BODY_BYTES {
                return Err(too_large());
            }
            bytes.extend_from_slice(data);
        }
    }
}

/// Sorts an answer: a result, a no, or nonsense.
fn take_envelope(status: StatusCode, body: &[u8]) -> Result<Envelope<Value>, ClientError> {
    let refused = status.is_client_error() || status.is_server_error();
    match serde_json::from_slice::<Envelope<Value>>(body) {
        Ok(envelope) if envelope.kind == EnvelopeKind::Error => Err(ClientError::Agent {
            status: match envelope.error_code {
                0 => status.as_u16(),
                code => code,
            },
            text: bounded(&envelope.error),
        }),
        Ok(envelope) if !refused => Ok(envelope),
        Ok(_) | Err(_) if refused => Err(ClientError::Agent {
            status: status.as_u16(),
            text: quote(status, body),
        }),
        Ok(_) => Err(ClientError::protocol(format!("{status} with a result"))),
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
    match text.is_empty() {
        false => text,
        true => status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned(),
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
    use std::hint;

    use tokio::{io::AsyncWriteExt, net::UnixStream, task::yield_now};

    use super::*;
    use crate::connect::RawStream;

    /// Connections that end while a request is on its way.
    const RACES: usize = 20_000;

    #[test]
    fn an_error_envelope_is_the_agents_no() {
        let body = br#"{"type":"error","status":"","status_code":0,"operation":"","error_code":404,"error":"not found","metadata":null}"#;
        match take_envelope(StatusCode::NOT_FOUND, body) {
            Err(ClientError::Agent { status, text }) => {
                assert_eq!((status, text.as_str()), (404, "not found"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_envelope_is_a_no_whatever_the_status() {
        let body = br#"{"type":"error","error":"boom","metadata":null}"#;
        assert!(matches!(
            take_envelope(StatusCode::OK, body),
            Err(ClientError::Agent { status: 200, .. })
        ));
    }

    #[test]
    fn a_plain_text_no_is_quoted() {
        match take_envelope(StatusCode::NOT_FOUND, b"404 page not found\n") {
            Err(ClientError::Agent { status: 404, text }) => assert_eq!(text, "404 page not found"),
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
    fn metadata_of_another_type_breaks_the_protocol() {
        let envelope = Envelope::sync(Value::from("text"));
        let read = metadata::<crate::protocol::server_info::ServerInfo>(envelope, "the answer");
        assert!(matches!(read, Err(ClientError::Protocol { .. })));
    }

    /// hyper by itself loses one in twenty thousand of these, on two processors.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_that_meets_the_end_of_its_connection_is_not_forgotten() {
        for number in 0..RACES {
            let (ours, theirs) = UnixStream::pair().unwrap();
            drop(theirs);
            let stream = Stream::Plain(RawStream::Unix(ours));
            let connection = Connection::start(stream).await.unwrap();
            // The connection ends in another thread, a bit later.
            (0..256 + number % 256).for_each(|_| hint::spin_loop());
            let sent = connection.send(request(&Call::get("/1.0", "asking")));
            let sent = timeout(ANSWER_TIMEOUT, sent).await;
            assert!(sent.expect("an answer in time").is_err());
        }
    }

    #[tokio::test]
    async fn what_has_ended_a_connection_is_said_to_who_asks_later() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = Stream::Plain(RawStream::Unix(ours));
        let connection = Connection::start(stream).await.unwrap();
        theirs.write_all(b"an answer to nothing").await.unwrap();
        while !connection.sender.is_closed() {
            yield_now().await;
        }
        let sent = connection.send(request(&Call::get("/1.0", "asking"))).await;
        assert!(!sent.unwrap_err().is_canceled());
    }
}
