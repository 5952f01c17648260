//! One question to the host, one answer: HTTP/1.1, over TLS or plain, envelopes taken off.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use vsock_agent_transport::http::Connection;

use crate::{
    defaults,
    http::{
        listen::{self, ListenAddress},
        reply::{ApiError, read_body},
    },
};

/// The name LXD's agents ask for. Hosts have one certificate, whatever it says.
const HOST_NAME: &str = "custom.socket";

/// Where the host is, and how it is known. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HostApi {
    address: ListenAddress,
    tls: Option<Arc<ClientConfig>>,
}

/// Why the host did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nobody has said where it is.
    #[error("no host is known")]
    NoHost,
    /// Nobody listens there, or not in time.
    #[error("cannot connect to the host")]
    Connect(#[source] io::Error),
    /// It is not the one that is expected, or does not know this agent.
    #[error("no TLS with the host")]
    Tls(#[source] io::Error),
    /// It takes too long.
    #[error("the host does not answer in time")]
    Silent,
    /// It left.
    #[error("the connection to the host is lost")]
    Lost(#[source] hyper::Error),
    /// The body of its answer is cut off, or too large.
    #[error("the host's answer is unreadable")]
    Body(#[source] ApiError),
    /// It says no.
    #[error("the host refuses: {text} ({status})")]
    Refused { status: StatusCode, text: String },
    /// It says something that makes no sense.
    #[error("the host's answer to {0} is not what it should be")]
    Nonsense(String),
}

impl HostApi {
    /// Without `tls`, whoever listens there is trusted.
    pub(super) const fn new(address: ListenAddress, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { address, tls }
    }

    pub(super) const fn caller(self) -> Caller {
        Caller {
            host: self,
            connection: None,
        }
    }

    async fn open(&self) -> Result<Connection, CallError> {
        let opening = async {
            let stream = listen::connect(&self.address)
                .await
                .map_err(CallError::Connect)?;
            let Some(tls) = &self.tls else {
                return Connection::start(stream).await.map_err(CallError::Lost);
            };
            let name = ServerName::try_from(HOST_NAME)
                .map_err(|error| CallError::Tls(io::Error::other(error)))?;
            let stream = TlsConnector::from(Arc::clone(tls))
                .connect(name, stream)
                .await
                .map_err(CallError::Tls)?;
            Connection::start(stream).await.map_err(CallError::Lost)
        };
        timeout(defaults::HOST_CONNECT_TIMEOUT, opening)
            .await
            .unwrap_or_else(|_| Err(CallError::Connect(io::ErrorKind::TimedOut.into())))
    }

    /// Asks over a connection of its own, and waits for the head of the answer as long as there is one.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Connect`] and [`CallError::Tls`] before the host has the request.
    pub(super) async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<HostAnswer, CallError> {
        add_headers(request.headers_mut());
        if !request.method().is_safe() {
            return self.ask_once(request).await;
        }
        match self.ask_once(request.clone()).await {
            // A host that is about to end still takes connections.
            Err(CallError::Lost(_)) => self.ask_once(request).await,
            answer => answer,
        }
    }

    async fn ask_once(&self, request: Request<Full<Bytes>>) -> Result<HostAnswer, CallError> {
        let connection = self.open().await?;
        let (response, connection) = connection.send(request).await.map_err(CallError::Lost)?;
        Ok(HostAnswer {
            response,
            connection,
        })
    }
}

/// What every request to the host has.
fn add_headers(headers: &mut HeaderMap) {
    headers.insert(header::HOST, HeaderValue::from_static(HOST_NAME));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
}

/// An answer of the host, with its body still to be read. The connection ends with it.
#[derive(Debug)]
pub(crate) struct HostAnswer {
    response: Response<Incoming>,
    /// Drives the body. `None` if all of that has come.
    connection: Option<Connection>,
}

impl HostAnswer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The whole body.
    ///
    /// # Errors
    ///
    /// [`CallError::Body`] if it is cut off, comes too slowly, or is larger than `limit` bytes.
    pub(crate) async fn read(self, limit: usize) -> Result<Bytes, CallError> {
        let _connection = self.connection;
        let body = self.response.into_body();
        let text = read_body(body, limit, defaults::HOST_ANSWER_TIMEOUT).await;
        Ok(text.map_err(CallError::Body)?.freeze())
    }

    /// The next piece of the body. `None` at its end.
    ///
    /// # Errors
    ///
    /// The host has left, or no piece has come for [`defaults::HOST_ANSWER_TIMEOUT`].
    pub(crate) async fn next_piece(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let frame = self.response.body_mut().frame();
            match timeout(defaults::HOST_ANSWER_TIMEOUT, frame).await {
                Err(_) => return Some(Err(io::ErrorKind::TimedOut.into())),
                Ok(None) => return None,
                Ok(Some(Err(error))) => return Some(Err(io::Error::other(error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
            }
        }
    }
}

/// Somebody with several questions, who keeps the connection as long as the host does.
#[derive(Debug)]
pub(super) struct Caller {
    host: HostApi,
    connection: Option<Connection>,
}

impl Caller {
    /// Asks, and gives what is in the envelope.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub(super) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        // A host may close a connection at any time; one that was just opened it has not seen yet.
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            match self.call_over(connection, &method, path, body).await {
                Err(CallError::Lost(_)) if method == Method::GET => {}
                answer => return answer,
            }
        }
        let connection = self.host.open().await?;
        self.call_over(connection, &method, path, body).await
    }

    async fn call_over(
        &mut self,
        connection: Connection,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        let nonsense = || CallError::Nonsense(path.to_owned());
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().map_err(|_| nonsense())?;
        add_headers(request.headers_mut());
        let sending = connection.send(request);
        let (reply, connection) = timeout(defaults::HOST_ANSWER_TIMEOUT, sending)
            .await
            .map_err(|_| CallError::Silent)?
            .map_err(CallError::Lost)?;
        let status = reply.status();
        let limit = defaults::MAX_HOST_ANSWER_BYTES;
        let text = read_body(reply.into_body(), limit, defaults::HOST_ANSWER_TIMEOUT)
            .await
            .map_err(CallError::Body)?;
        self.connection = connection;
        let mut envelope: Value = serde_json::from_slice(&text).unwrap_or_default();
        if !status.is_success() {
            let text = envelope["error"].as_str().unwrap_or_default();
            return Err(CallError::Refused {
                status,
                text: text.to_owned(),
            });
        }
        if envelope["type"] == "sync" {
            Ok(envelope["metadata"].take())
        } else {
            Err(nonsense())
        }
    }
}
