//! Websockets on connections upgraded by hyper.
//!
//! Hyper reads the handshake, so its limits hold for it; tungstenite only speaks the frames, and
//! keeps bytes that came with the handshake because hyper's upgraded stream hands them on.

mod pieces;

use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Version, header};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use self::pieces::Pieces;
use crate::{
    defaults,
    http::reply::{ApiError, Reply, switching_protocols},
};

/// An open websocket.
pub(crate) type WebSocket = WebSocketStream<Pieces<TokioIo<Upgraded>>>;

/// What the client sends on a websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Short control messages, or none.
    Words,
    /// A stream of bytes: messages of any size, which are received in pieces.
    Bytes,
}

/// A websocket whose handshake is accepted and whose connection is still HTTP.
#[derive(Debug)]
pub(crate) struct Upgrading(OnUpgrade);

impl Upgrading {
    /// Waits until the reply has been sent. `None` if the client closed the connection, or after
    /// [`defaults::UPGRADE_TIMEOUT`].
    pub(crate) async fn open(self, carries: Carries) -> Option<WebSocket> {
        let upgraded = timeout(defaults::UPGRADE_TIMEOUT, self.0)
            .await
            .ok()?
            .ok()?;
        let io = TokioIo::new(upgraded);
        let (io, read_buffer_bytes) = match carries {
            Carries::Words => (Pieces::uncut(io), defaults::WS_SMALL_READ_BUFFER_BYTES),
            Carries::Bytes => (Pieces::cut(io), defaults::WS_READ_BUFFER_BYTES),
        };
        let limits = Some(limits(read_buffer_bytes));
        Some(WebSocketStream::from_raw_socket(io, Role::Server, limits).await)
    }
}

/// Accepts a handshake. Returns the reply and the pending websocket.
///
/// # Errors
///
/// 400 for a handshake that violates RFC 6455, section 4.2.1, and for a page of another host in a browser
/// (its `Origin`).
pub(crate) fn accept(request: &mut Request<Incoming>) -> Result<(Reply, Upgrading), ApiError> {
    let key = check(request)?;
    let upgrading = Upgrading(hyper::upgrade::on(request));
    let mut reply = switching_protocols("websocket");
    let Some(key) = key else {
        return Ok((reply, upgrading));
    };
    let accept = HeaderValue::try_from(derive_accept_key(&key))
        .map_err(|_| ApiError::bad_request("the websocket key cannot be answered"))?;
    reply
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok((reply, upgrading))
}

/// Whether the client requests a websocket.
pub(crate) fn is_requested(headers: &HeaderMap) -> bool {
    has_token(headers, header::UPGRADE, "websocket")
}

/// Returns the key. Over HTTP/2 there is none (RFC 8441, section 5).
fn check(request: &Request<Incoming>) -> Result<Option<Vec<u8>>, ApiError> {
    let headers = request.headers();
    let is_http2 = request.version() == Version::HTTP_2;
    if request.method() != Method::GET || !(is_http2 || request.version() == Version::HTTP_11) {
        return Err(ApiError::bad_request(
            "a websocket starts with GET over HTTP/1.1 or with extended CONNECT over HTTP/2",
        ));
    }
    if !is_requested(headers) || !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(ApiError::bad_request(
            "this is a websocket, and no upgrade is asked for",
        ));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(ApiError::bad_request("only websocket version 13 is spoken"));
    }
    if is_foreign(headers) {
        return Err(ApiError::bad_request("the Origin is another host"));
    }
    if is_http2 {
        return Ok(None);
    }
    // 16 bytes in base64 are 22 characters and two of padding (RFC 6455, section 4.1).
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) if key.len() == 24 => Ok(Some(key.as_bytes().to_vec())),
        _ => Err(ApiError::bad_request("no usable Sec-WebSocket-Key")),
    }
}

/// Whether there is an `Origin` that is not the host that the client connects to. Some clients that
/// are no browsers send one that is.
fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let is_same = || {
        let (scheme, origin) = origin.to_str().ok()?.split_once("://")?;
        let host = headers.get(header::HOST)?.to_str().ok()?;
        // Either may leave out the scheme's own port (RFC 6454, section 6.2).
        let port = match scheme {
            "http" | "ws" => ":80",
            _ => ":443",
        };
        let bare =
            |authority: &'_ str| authority.strip_suffix(port).unwrap_or(authority).to_owned();
        Some(bare(origin).eq_ignore_ascii_case(&bare(host)))
    };
    !is_same().unwrap_or(false)
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// No limit on buffered output: each message is sent before the next is made, and an event can be as large
/// as a request.
fn limits(read_buffer_bytes: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(read_buffer_bytes)
        .write_buffer_size(0)
        .max_message_size(Some(defaults::MAX_MESSAGE_BYTES))
        .max_frame_size(Some(defaults::MAX_MESSAGE_BYTES))
}

/// Sends a close frame, and waits for the client to close the connection, [`defaults::LINGER_TIMEOUT`] at
/// most: a VMM may drop what it still buffers when the guest closes first.
pub(crate) async fn linger<S>(mut socket: WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let goodbye = async {
        // Both fail when the client has closed the connection, which is what this waits for.
        let _ = socket.close(None).await;
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = timeout(defaults::LINGER_TIMEOUT, goodbye).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_connected_to_is_no_foreign_origin() {
        let is_foreign = |origin: &'static str, host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            headers.insert(header::HOST, HeaderValue::from_static(host));
            is_foreign(&headers)
        };
        assert!(!super::is_foreign(&HeaderMap::new()));
        for (origin, host) in [
            ("http://custom.socket", "custom.socket"),
            ("http://custom.socket:80", "custom.socket"),
            ("https://Vm.example:8443", "vm.EXAMPLE:8443"),
            ("https://vm", "vm:443"),
            ("http://[::1]:8443", "[::1]:8443"),
        ] {
            assert!(!is_foreign(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://evil.example", "vm"),
            ("http://vm:81", "vm"),
            ("http://vm", "vm:443"),
            ("null", "null"),
            ("vm", "vm"),
            ("", ""),
        ] {
            assert!(is_foreign(origin, host), "{origin} {host}");
        }
    }
}
