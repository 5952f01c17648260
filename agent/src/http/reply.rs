//! Replies, and the bodies of requests.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Incoming};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::timeout;
use vsock_agent_protocol::{envelope::Envelope, printable::with_causes};

use crate::defaults;

/// The body of a reply. An error in it closes the connection, so that the client does not take a part
/// for the whole.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a body cannot be read.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A reply.
pub(crate) type Reply = Response<Body>;

/// An error reply: a status and a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct ApiError {
    status: StatusCode,
    text: String,
    /// The allowed methods, for 405.
    allow: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            allow: None,
        }
    }

    /// 405, with the value of the header `Allow`.
    pub(crate) fn wrong_method(text: impl Into<String>, allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, text)
        }
    }

    /// 500, with the error and its causes.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, with_causes(error))
    }

    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn forbidden(text: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    /// Turned away for now, because a limit is reached.
    pub(crate) fn busy(text: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    /// The error in LXD's envelope.
    pub(crate) fn into_reply(self) -> Reply {
        let envelope = Envelope::error(self.status.as_u16(), self.text);
        refusal(json(self.status, &envelope), self.allow)
    }

    /// The error for a program in the guest: a line of text, as from LXD's guest API.
    pub(crate) fn into_plain_reply(self) -> Reply {
        let mut reply = text("text/plain; charset=utf-8", self.text + "\n");
        *reply.status_mut() = self.status;
        refusal(reply, self.allow)
    }
}

fn refusal(mut reply: Reply, allow: Option<&'static str>) -> Reply {
    let headers = reply.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Some(allow) = allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    reply
}

/// A result in LXD's envelope.
pub(crate) fn sync<T: Serialize>(metadata: T) -> Reply {
    json(StatusCode::OK, &Envelope::sync(metadata))
}

/// An empty result in the envelope: LXD writes an empty object.
pub(crate) fn empty() -> Reply {
    sync(serde_json::Map::new())
}

/// 202: an operation was created, in the envelope.
pub(crate) fn operation_created<T: Serialize>(path: String, metadata: T) -> Reply {
    let location = HeaderValue::try_from(&path);
    let mut reply = json(
        StatusCode::ACCEPTED,
        &Envelope::operation_created(path, metadata),
    );
    if let Ok(location) = location {
        reply.headers_mut().insert(header::LOCATION, location);
    }
    reply
}

/// 200: the frames of a command's operation, which is at `location`.
pub(crate) fn stream<B>(location: &str, body: B) -> Reply
where
    B: HttpBody<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let mut reply = Response::new(body.boxed_unsync());
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(header::LOCATION, location);
    }
    reply
}

/// Text without an envelope.
pub(crate) fn text(content_type: &'static str, text: String) -> Reply {
    let mut reply = Response::new(full(text));
    let content_type = HeaderValue::from_static(content_type);
    reply
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    reply
}

/// 101: the connection switches to this protocol.
pub(crate) fn switching_protocols(protocol: &'static str) -> Reply {
    let mut reply = Response::new(full(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    reply
}

/// A value as JSON, without an envelope.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    let mut reply = match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            Response::new(full(text))
        }
        // Fails only for a map whose keys are not strings, and the protocol has none.
        Err(error) => {
            tracing::error!(%error, "cannot write a reply");
            let mut reply = Response::new(full(Bytes::new()));
            *reply.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return reply;
        }
    };
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    reply
}

/// A complete body.
pub(crate) fn full(data: impl Into<Bytes>) -> Body {
    Full::new(data.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads a body as JSON.
///
/// # Errors
///
/// 413 above [`defaults::MAX_BODY_BYTES`], 408 when it stops arriving or is not complete within
/// [`defaults::BODY_DEADLINE`], 400 when it cannot be parsed.
pub(crate) async fn read_json<T: DeserializeOwned>(body: Incoming) -> Result<T, ApiError> {
    read_json_within(body, defaults::MAX_BODY_BYTES).await
}

/// Reads a body of at most `limit` bytes as JSON.
///
/// # Errors
///
/// As [`read_json`].
pub(crate) async fn read_json_within<T: DeserializeOwned>(
    body: Incoming,
    limit: usize,
) -> Result<T, ApiError> {
    // A body whose `Content-Length` is too large is refused before it is read.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let text = read_body(body, limit, defaults::BODY_TIMEOUT).await?;
    parse_json(&text)
}

/// Parses a request. A field that is `null` counts as missing, as in Go's `encoding/json`.
///
/// # Errors
///
/// 400 when it cannot be parsed.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    let parse = || {
        let mut request: Value = serde_json::from_slice(text)?;
        if let Value::Object(fields) = &mut request {
            fields.retain(|_, value| !value.is_null());
        }
        T::deserialize(request)
    };
    parse().map_err(|error: serde_json::Error| {
        ApiError::bad_request(format!("the body is not what it should be: {error}"))
    })
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
///
/// As [`read_json`], with `pause` as the longest time between two pieces.
pub(crate) async fn read_body(
    body: impl HttpBody<Data = Bytes, Error: Into<Cause>> + Unpin,
    limit: usize,
    pause: Duration,
) -> Result<BytesMut, ApiError> {
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body arrives too slowly");
    let pieces = read_pieces(body, limit, pause);
    timeout(defaults::BODY_DEADLINE, pieces)
        .await
        .map_err(late)?
}

async fn read_pieces(
    body: impl HttpBody<Data = Bytes, Error: Into<Cause>> + Unpin,
    limit: usize,
    pause: Duration,
) -> Result<BytesMut, ApiError> {
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body stopped arriving");
    let mut body = Limited::new(body, limit);
    let mut text = BytesMut::new();
    loop {
        let frame = timeout(pause, body.frame()).await.map_err(late)?;
        match frame {
            None => return Ok(text),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    text.extend_from_slice(data);
                }
            }
            Some(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(too_large(limit));
            }
            Some(Err(error)) => {
                return Err(ApiError::bad_request(format!(
                    "the body is incomplete: {error}"
                )));
            }
        }
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is larger than {limit} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_has_a_deadline() {
        let drops = stream::unfold((), |()| async {
            sleep(Duration::from_secs(1)).await;
            let frame = Frame::data(Bytes::from_static(b" "));
            Some((Ok::<_, Infallible>(frame), ()))
        });
        let body = StreamBody::new(Box::pin(drops));
        let start = Instant::now();
        let error = read_body(body, 1000, Duration::from_secs(10)).await;
        assert_eq!(error.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(start.elapsed(), defaults::BODY_DEADLINE);
    }
}
