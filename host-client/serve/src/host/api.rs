//! The HTTP API for a guest: reads its own instance data and reports its state. It is LXD's `devlxd`
//! API, with replies in the envelope of LXD's main API.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::Map;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tracing::debug;

use super::{HostState, guest::ServedGuest, limits};
use vsock_agent_protocol::{
    envelope::Envelope,
    guest_api::{self, GuestInfo, HostFeature, HostRoute, StateReport, UbuntuPro},
    path,
};

use crate::instance::GuestView;

type Reply = Response<Full<Bytes>>;

/// An error reply: status and message.
type Refusal = (StatusCode, String);

/// Serves one connection of a guest.
pub(super) async fn serve<S>(host: &Arc<HostState>, guest: &Arc<ServedGuest>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let (host, guest) = (Arc::clone(host), Arc::clone(guest));
        async move { Ok::<_, Infallible>(answer(&host, &guest, request).await) }
    });
    let connection = http1::Builder::new()
        // `header_read_timeout` needs a timer.
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_buf_size(limits::MAX_HEAD_BYTES)
        .max_headers(limits::MAX_HEADERS)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = guest.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(guest = guest.name(), %error, "a connection ended");
    }
}

async fn answer(host: &HostState, guest: &ServedGuest, request: Request<Incoming>) -> Reply {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let reply = match route(host, guest, request).await {
        Ok(reply) => reply,
        Err((status, text)) => json(status, &Envelope::error(status.as_u16(), text)),
    };
    let status = reply.status().as_u16();
    debug!(guest = guest.name(), %method, path, status, "request");
    reply
}

async fn route(
    host: &HostState,
    guest: &ServedGuest,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let view = guest.view().ok_or_else(|| {
        let text = "the host cannot read the data of this instance; see its log";
        (StatusCode::INTERNAL_SERVER_ERROR, text.to_owned())
    })?;
    if !view.is_allowed {
        return Err((StatusCode::FORBIDDEN, "not authorized".to_owned()));
    }
    let (path, query) = (request.uri().path(), request.uri().query());
    if let Some(route) = HostRoute::of(path)
        && route.allows(request.method().as_str())
    {
        return disabled(route.feature);
    }
    match (path, request.method()) {
        (guest_api::INFO, &Method::PATCH) => {
            let report = read_report(request.into_body()).await?;
            guest.set_state(host, report.state);
            Ok(sync(Map::new()))
        }
        (guest_api::CONFIG, &Method::GET) if asks_for_values(query) => Ok(values(&view)),
        (_, &Method::GET) => get(host, guest, &view, path),
        (path, method) => {
            let text = format!("{path} does not support {method}");
            Err((StatusCode::METHOD_NOT_ALLOWED, text))
        }
    }
}

fn get(
    host: &HostState,
    guest: &ServedGuest,
    view: &GuestView,
    path: &str,
) -> Result<Reply, Refusal> {
    Ok(match path {
        path::ROOT => sync([guest_api::INFO]),
        guest_api::INFO => sync(GuestInfo::new(host.location.clone(), guest.state())),
        guest_api::CONFIG => paths(view),
        guest_api::META_DATA => sync(&view.meta_data),
        guest_api::DEVICES => sync(&view.devices),
        _ => match guest_api::key_of_path(path) {
            Some(key) => sync(value(view, &key)?),
            None => return Err((StatusCode::NOT_FOUND, format!("{path} does not exist"))),
        },
    })
}

/// LXD's reply when a feature is disabled. This host has none of these features.
fn disabled(feature: HostFeature) -> Result<Reply, Refusal> {
    match feature {
        HostFeature::UbuntuPro => Ok(sync(UbuntuPro::off())),
        _ => Err((StatusCode::FORBIDDEN, feature.refusal().to_owned())),
    }
}

fn asks_for_values(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|word| word == "recursion=1"))
}

/// All keys with their values, or without them if the reply would be too large for an agent.
fn values(view: &GuestView) -> Reply {
    let reply = sync(&view.config);
    match reply.body().size_hint().exact() {
        Some(bytes) if bytes <= guest_api::MAX_ANSWER_BYTES as u64 => reply,
        _ => paths(view),
    }
}

fn paths(view: &GuestView) -> Reply {
    let paths = view.config.keys();
    let paths = paths.map(|key| format!("{}/{key}", guest_api::CONFIG));
    sync(paths.collect::<Vec<_>>())
}

fn value<'a>(view: &'a GuestView, key: &str) -> Result<&'a String, Refusal> {
    if !guest_api::is_guest_key(key) || guest_api::is_hidden_key(key) {
        return Err((StatusCode::FORBIDDEN, "not authorized".to_owned()));
    }
    view.config
        .get(key)
        .ok_or_else(|| (StatusCode::NOT_FOUND, "not found".to_owned()))
}

async fn read_report(body: Incoming) -> Result<StateReport, Refusal> {
    let wrong = |text: String| (StatusCode::BAD_REQUEST, text);
    let body = Limited::new(body, limits::MAX_BODY_BYTES).collect();
    let late = (
        StatusCode::REQUEST_TIMEOUT,
        "the body did not arrive".to_owned(),
    );
    let body = timeout(limits::BODY_TIMEOUT, body)
        .await
        .map_err(|_| late)?;
    let body = body.map_err(|error| wrong(format!("the body cannot be read: {error}")))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| wrong(format!("the body is not a state report: {error}")))
}

fn sync<T: Serialize>(metadata: T) -> Reply {
    json(StatusCode::OK, &Envelope::sync(metadata))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    let (status, text) = match serde_json::to_vec(value) {
        Ok(text) => (status, text),
        // Only a map whose keys are not strings can fail, and there is none.
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    *reply.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(header::CONTENT_TYPE, json);
    reply
}
