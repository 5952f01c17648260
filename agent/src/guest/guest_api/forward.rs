//! Forwards requests to the host, and returns its replies without their envelopes, as LXD's agent does.
//!
//! The host receives the method, path, query and body, and the headers `Authorization` (a bearer token) and
//! `If-Match`. The guest receives the status, the body, and [`FILE_HEADERS`] of a file or otherwise `ETag`.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    http::uri::Uri,
};
use serde_json::{Value, json};
use tokio::{
    select,
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::guest_api::{HostFeature, HostRoute, INFO, UbuntuPro};

use super::{GuestApi, VALUE};
use crate::{
    defaults,
    guest::instance_data::{CallError, HostResponse},
    http::reply::{self, ApiError, Reply, read_body, text},
};

/// Headers of a file that are returned to the guest.
const FILE_HEADERS: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_DISPOSITION,
    header::ETAG,
    header::LAST_MODIFIED,
];

/// Whether the request has a bearer token.
pub(super) fn has_token(request: &Request<Incoming>) -> bool {
    token(request.headers()).is_some()
}

fn token(headers: &HeaderMap) -> Option<&HeaderValue> {
    let value = headers.get(header::AUTHORIZATION)?;
    let is_token = value
        .as_bytes()
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"Bearer "));
    is_token.then_some(value)
}

/// `GET /1.0` with a bearer token, which the host checks. `None` without a reply of the host, and for other
/// methods.
pub(super) async fn info(
    api: &GuestApi,
    request: Request<Incoming>,
) -> Option<Result<Reply, ApiError>> {
    if !request.method().is_safe() {
        return None;
    }
    let request = for_host(&request, INFO, Bytes::new()).ok()?;
    let answering = async { Parsed::read(api.data.forward(request).await?).await };
    let _permit = api.forwards.try_acquire().ok()?;
    let answered = timeout(defaults::HOST_ANSWER_TIMEOUT, answering)
        .await
        .ok()?;
    answered.ok().map(|answer| answer.into_reply(INFO))
}

/// Forwards a request to the host, and returns its reply. Without the route on the host, the feature counts
/// as off. Ends when `stop` is cancelled.
pub(super) async fn forward(
    api: &GuestApi,
    route: &HostRoute,
    request: Request<Incoming>,
    stop: CancellationToken,
    extend: &(dyn Fn(Duration) + Sync),
) -> Result<Reply, ApiError> {
    if !route.allows(request.method().as_str()) {
        let text = format!("method {} is not allowed", request.method());
        return Err(ApiError::wrong_method(text, route.allow));
    }
    let permit = Arc::clone(&api.forwards).try_acquire_owned();
    let permit =
        permit.map_err(|_| ApiError::busy("too many requests are waiting for the host"))?;
    let limit = match route.feature {
        HostFeature::VolumesWait | HostFeature::ImageExport => {
            extend(defaults::LONG_FORWARD_TIMEOUT);
            defaults::LONG_FORWARD_TIMEOUT
        }
        _ => defaults::FORWARD_TIMEOUT,
    };
    let limits = Limits {
        deadline: Instant::now() + limit,
        stop,
        _permit: permit,
    };
    let ended = limits.ended();
    select! {
        answer = exchange(api, route, request) => match answer? {
            Answer::Whole(reply) => Ok(reply),
            Answer::File(answer) => Ok(file(answer, limits)),
        },
        error = ended => Err(error),
    }
}

/// The limits of a forwarded request: deadline, stop token and permit.
struct Limits {
    deadline: Instant,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Limits {
    /// Waits for the deadline or `stop`, and returns the error.
    async fn ended(&self) -> ApiError {
        select! {
            () = sleep_until(self.deadline) => failed(&CallError::TimedOut),
            () = self.stop.cancelled() => ApiError::busy("requests are no longer forwarded to the host"),
        }
    }
}

/// A reply of the host.
enum Answer {
    Whole(Reply),
    File(HostResponse),
}

async fn exchange(
    api: &GuestApi,
    route: &HostRoute,
    request: Request<Incoming>,
) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let head = Request::from_parts(head, ());
    let limit = defaults::MAX_FORWARD_BODY_BYTES;
    let body = read_body(body, limit, defaults::BODY_TIMEOUT).await?;
    let for_host = for_host(&head, &route.path, body.freeze())?;
    let answer = match api.data.forward(for_host).await {
        Ok(answer) => answer,
        Err(CallError::NoHost) => return off(route.feature).map(Answer::Whole),
        // Without a host, this feature is off.
        Err(CallError::Connect(_) | CallError::Tls(_))
            if route.feature == HostFeature::UbuntuPro =>
        {
            return off(route.feature).map(Answer::Whole);
        }
        Err(error) => return Err(failed(&error)),
    };
    if route.feature == HostFeature::ImageExport && answer.status().is_success() {
        return Ok(Answer::File(answer));
    }
    let parsed = Parsed::read(answer).await.map_err(|error| failed(&error))?;
    if parsed.is_without_route() {
        return off(route.feature).map(Answer::Whole);
    }
    match (route.feature, parsed.into_reply(&route.path)) {
        (HostFeature::ImageExport, Err(error)) => Ok(Answer::Whole(error.into_reply())),
        (_, answer) => answer.map(Answer::Whole),
    }
}

/// The request to the host. LXD's hosts do not support `HEAD`, so it becomes `GET`; hyper omits the body of
/// the reply (RFC 9110, section 9.3.2).
fn for_host<B>(
    head: &Request<B>,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, ApiError> {
    let target = match head.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let target: Uri = target
        .parse()
        .map_err(|_| ApiError::bad_request("invalid path"))?;
    let mut request = Request::new(Full::from(body));
    *request.uri_mut() = target;
    *request.method_mut() = match head.method() {
        &Method::HEAD => Method::GET,
        method => method.clone(),
    };
    let headers = request.headers_mut();
    if let Some(token) = token(head.headers()) {
        let mut token = token.clone();
        token.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, token);
    }
    if let Some(etag) = head.headers().get(header::IF_MATCH) {
        headers.insert(header::IF_MATCH, etag.clone());
    }
    Ok(request)
}

/// LXD's reply when a feature is off.
fn off(feature: HostFeature) -> Result<Reply, ApiError> {
    let refusal = ApiError::forbidden(feature.refusal());
    match feature {
        HostFeature::UbuntuPro => Ok(reply::json(StatusCode::OK, &UbuntuPro::off())),
        HostFeature::ImageExport => Ok(refusal.into_reply()),
        _ => Err(refusal),
    }
}

pub(super) fn failed(error: &CallError) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// Streams a file from the host, without buffering more than one frame.
fn file(answer: HostResponse, limits: Limits) -> Reply {
    let status = answer.status();
    let headers: HeaderMap = FILE_HEADERS
        .into_iter()
        .filter_map(|name| Some((name.clone(), answer.headers().get(name)?.clone())))
        .collect();
    let pieces = stream::try_unfold((answer, limits), |(mut answer, limits)| async move {
        let piece = select! {
            piece = answer.next_piece() => piece.transpose()?,
            error = limits.ended() => return Err(io::Error::other(error)),
        };
        Ok(piece.map(|piece| (piece, (answer, limits))))
    });
    let mut reply = Response::new(StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync());
    *reply.status_mut() = status;
    *reply.headers_mut() = headers;
    reply
}

/// A complete reply of the host.
struct Parsed {
    status: StatusCode,
    etag: Option<HeaderValue>,
    /// `Null` if the body is not JSON.
    envelope: Value,
}

impl Parsed {
    async fn read(answer: HostResponse) -> Result<Self, CallError> {
        let status = answer.status();
        let etag = answer.headers().get(header::ETAG).cloned();
        let body = answer.read(defaults::MAX_FORWARD_ANSWER_BYTES).await?;
        Ok(Self {
            status,
            etag,
            envelope: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }

    /// Whether the host does not have the route: its HTTP library replies in plain text, LXD with a general
    /// error, and some versions as to `/`. If only the object does not exist, LXD replies with an envelope.
    fn is_without_route(&self) -> bool {
        match self.status {
            StatusCode::NOT_FOUND => self.envelope["type"] != "error",
            StatusCode::METHOD_NOT_ALLOWED => true,
            StatusCode::NOT_IMPLEMENTED => self.error().eq_ignore_ascii_case("not implemented"),
            _ => self.envelope["metadata"] == json!([INFO]),
        }
    }

    /// The error text.
    fn error(&self) -> &str {
        let general = self.status.canonical_reason().unwrap_or("refused");
        self.envelope["error"].as_str().unwrap_or(general)
    }

    /// The reply to the guest. `path` is the requested path.
    fn into_reply(mut self, path: &str) -> Result<Reply, ApiError> {
        if self.status.is_client_error() || self.status.is_server_error() {
            return Err(ApiError::new(self.status, self.error()));
        }
        let is_result = self.envelope["type"] == "sync" || self.envelope["type"] == "async";
        if !is_result {
            return Err(failed(&CallError::Malformed(path.to_owned())));
        }
        let mut reply = match self.envelope["metadata"].take() {
            Value::String(value) => text(VALUE, value),
            Value::Null => text(VALUE, String::new()),
            value => reply::json(StatusCode::OK, &value),
        };
        if let Some(etag) = self.etag {
            reply.headers_mut().insert(header::ETAG, etag);
        }
        Ok(reply)
    }
}
