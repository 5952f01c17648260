//! HTTP/1.1 client of the host's API, over TLS or plain.

use std::{io, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use vsock_agent_protocol::guest_api;
use vsock_agent_transport::http::Connection;

use crate::{
    defaults,
    http::{
        listen::{self, ListenAddress},
        reply::{ApiError, read_body},
    },
};

/// The server name that LXD's agent uses. The certificate is pinned, so its name does not matter.
const HOST_NAME: &str = "custom.socket";

/// The host's address and TLS configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HostApi {
    address: ListenAddress,
    tls: Option<Arc<ClientConfig>>,
}

/// Why a request to the host failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The host's address is unknown.
    #[error("the address of the host is unknown")]
    NoHost,
    /// The connection was refused, or not accepted in time.
    #[error("cannot connect to the host")]
    Connect(#[source] io::Error),
    /// The host's certificate is not pinned, or the host rejects the agent's.
    #[error("TLS handshake with the host failed")]
    Tls(#[source] io::Error),
    /// No response in time.
    #[error("the host did not reply in time")]
    TimedOut,
    /// The host closed the connection.
    #[error("the connection to the host is lost")]
    Lost(#[source] hyper::Error),
    /// The body of the response is truncated or too large.
    #[error("cannot read the host's reply")]
    Body(#[source] ApiError),
    /// The host replied with an error.
    #[error("the host replied {status}: {text}")]
    Refused { status: StatusCode, text: String },
    /// The response to this path is invalid.
    #[error("the host's reply to {0} is invalid")]
    Malformed(String),
}

impl HostApi {
    /// Without `tls`, the host is not authenticated.
    pub(super) const fn new(address: ListenAddress, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { address, tls }
    }

    pub(super) const fn client(self) -> HostClient {
        HostClient {
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

    /// Sends a request over a new connection, and returns the head of the response. No time limit.
    ///
    /// # Errors
    ///
    /// [`CallError`]. After `Connect` and `Tls`, the host has not received the request.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<HostResponse, CallError> {
        add_headers(request.headers_mut());
        if !request.method().is_safe() {
            return self.send_once(request).await;
        }
        match self.send_once(request.clone()).await {
            // A host that is shutting down still accepts connections.
            Err(CallError::Lost(_)) => self.send_once(request).await,
            answer => answer,
        }
    }

    async fn send_once(&self, request: Request<Full<Bytes>>) -> Result<HostResponse, CallError> {
        let connection = self.open().await?;
        let (response, connection) = connection.send(request).await.map_err(CallError::Lost)?;
        Ok(HostResponse {
            response,
            connection,
        })
    }
}

/// Headers of every request to the host.
fn add_headers(headers: &mut HeaderMap) {
    headers.insert(header::HOST, HeaderValue::from_static(HOST_NAME));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
}

/// A response of the host with an unread body. Closes the connection on drop.
#[derive(Debug)]
pub(crate) struct HostResponse {
    response: Response<Incoming>,
    /// Drives the body. `None` if the body is complete.
    connection: Option<Connection>,
}

impl HostResponse {
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
    /// [`CallError::Body`] if it is truncated, too slow, or larger than `limit` bytes.
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
    /// An error of the connection, or `TimedOut` after [`defaults::HOST_ANSWER_TIMEOUT`].
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

/// Sends requests over one connection while the host keeps it open.
#[derive(Debug)]
pub(super) struct HostClient {
    host: HostApi,
    connection: Option<Connection>,
}

impl HostClient {
    /// Sends a request, and returns the metadata of the response.
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
        // The host may close an idle connection at any time, so a GET is retried on a new one.
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            match self.call_on(connection, &method, path, body).await {
                Err(CallError::Lost(_)) if method == Method::GET => {}
                answer => return answer,
            }
        }
        let connection = self.host.open().await?;
        self.call_on(connection, &method, path, body).await
    }

    async fn call_on(
        &mut self,
        connection: Connection,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CallError> {
        let malformed = || CallError::Malformed(path.to_owned());
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().map_err(|_| malformed())?;
        add_headers(request.headers_mut());
        let sending = connection.send(request);
        let (reply, connection) = timeout(defaults::HOST_ANSWER_TIMEOUT, sending)
            .await
            .map_err(|_| CallError::TimedOut)?
            .map_err(CallError::Lost)?;
        let status = reply.status();
        let limit = guest_api::MAX_ANSWER_BYTES;
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
            Err(malformed())
        }
    }
}
