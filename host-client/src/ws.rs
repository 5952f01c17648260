//! WebSockets on connections to an agent.

use bytes::Bytes;
use http::{HeaderValue, header::SEC_WEBSOCKET_VERSION};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    connect::AgentStream,
    error::ClientError,
    http::{Call, Http},
};

/// The name of the protocol in an upgrade.
const PROTOCOL: &str = "websocket";

/// The version of the protocol (RFC 6455, section 4.1).
const VERSION: &str = "13";

pub(crate) type Socket = WebSocketStream<AgentStream>;

/// Largest message accepted, in bytes. Agents send up to 128 KiB of output, and events with a whole
/// command in them; the limit is against hostile agents.
const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;

/// Size of the read buffer of a socket for data, in bytes: a whole vsock packet.
pub(crate) const DATA_BUFFER_BYTES: usize = 64 * 1024;

/// Size of the read buffer of a socket for short messages, in bytes.
pub(crate) const SMALL_BUFFER_BYTES: usize = 4 * 1024;

/// Most bytes buffered for a socket that cannot be written to. Above the largest message sent.
const MAX_WRITE_BUFFER_BYTES: usize = 1024 * 1024;

/// Opens a WebSocket.
pub(crate) async fn open(
    http: &Http,
    path: &str,
    buffer_bytes: usize,
    during: &'static str,
) -> Result<Socket, ClientError> {
    let stream = match http
        .connect_stream(&websocket(path, during), PROTOCOL)
        .await?
    {
        Some(stream) => stream,
        None => connect(http, path, during).await?,
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(buffer_bytes)
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
}

/// The request for a WebSocket over HTTP/2 (RFC 8441, section 5).
fn websocket(path: &str, during: &'static str) -> Call {
    let mut call = Call::get(path, during);
    let version = HeaderValue::from_static(VERSION);
    call.headers.insert(SEC_WEBSOCKET_VERSION, version);
    call
}

/// Opens a connection for a WebSocket over HTTP/1.1.
async fn connect(
    http: &Http,
    path: &str,
    during: &'static str,
) -> Result<AgentStream, ClientError> {
    let key = generate_key();
    let due = derive_accept_key(key.as_bytes());
    let extra = [
        ("sec-websocket-key", key),
        ("sec-websocket-version", VERSION.to_owned()),
    ];
    let (stream, headers) = http.upgrade(path, PROTOCOL, &extra, during).await?;
    let accept = headers.get("sec-websocket-accept");
    if accept.is_none_or(|accept| accept.as_bytes() != due.as_bytes()) {
        return Err(ClientError::protocol(
            "a WebSocket handshake with the wrong key",
        ));
    }
    Ok(stream)
}

/// The message that ends one direction of a stream.
pub(crate) fn end_of_stream() -> Message {
    Message::text("")
}

/// A ping.
pub(crate) fn ping() -> Message {
    Message::Ping(Bytes::from_static(b"alive?"))
}
