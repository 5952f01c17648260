//! Routes of the guest API, with replies in LXD's format.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::{
    event,
    guest_api::{
        CONFIG, DEVICES, EVENTS, HostRoute, INFO, META_DATA, StateReport, is_guest_key,
        is_hidden_key, key_of_path,
    },
};

use super::{GuestApi, VALUE, forward};
use crate::{
    defaults,
    guest::instance_data::{CallError, Snapshot},
    http::{
        event_stream::{Source, kinds, send_events},
        reply::{ApiError, Reply, json, read_json_within, text},
    },
};

/// Answers a request. Calls `extend` with the time limit of the connection if that is longer than usual.
pub(super) async fn route(
    api: &GuestApi,
    request: Request<Incoming>,
    stop: CancellationToken,
    extend: &(dyn Fn(Duration) + Sync),
) -> Reply {
    let method = request.method().clone();
    // A client behind a proxy sends an absolute URL.
    let path = request.uri().path().to_owned();
    let answer = match path.as_str() {
        INFO if method == Method::PATCH => report(api, request).await,
        INFO if forward::has_token(&request) => match forward::info(api, request).await {
            Some(answer) => answer,
            None => read(api, &method, &path),
        },
        EVENTS if method == Method::GET => events(api, request, stop, extend),
        _ => match HostRoute::of(&path) {
            Some(route) => forward::forward(api, &route, request, stop, extend).await,
            None => read(api, &method, &path),
        },
    };
    let reply = answer.unwrap_or_else(ApiError::into_plain_reply);
    tracing::debug!(%method, status = reply.status().as_u16(), "request from the guest");
    reply
}

fn read(api: &GuestApi, method: &Method, path: &str) -> Result<Reply, ApiError> {
    let snapshot = api
        .data
        .snapshot()
        .ok_or_else(|| ApiError::not_found("no instance data"))?;
    let answer = find(&snapshot, path)?;
    match *method {
        Method::GET | Method::HEAD => Ok(answer),
        _ => Err(ApiError::wrong_method(
            format!("method {method} is not allowed"),
            match path {
                INFO => "GET, HEAD, PATCH",
                _ => "GET, HEAD",
            },
        )),
    }
}

fn find(snapshot: &Snapshot, path: &str) -> Result<Reply, ApiError> {
    let ok = StatusCode::OK;
    match path {
        "/" => Ok(json(ok, &[INFO])),
        INFO => Ok(json(ok, &snapshot.info)),
        CONFIG => {
            let keys = snapshot.config.keys();
            let paths: Vec<_> = keys.map(|key| format!("{CONFIG}/{key}")).collect();
            Ok(json(ok, &paths))
        }
        META_DATA => Ok(text(VALUE, snapshot.meta_data.clone())),
        DEVICES => Ok(json(ok, &snapshot.devices)),
        EVENTS => Ok(text(VALUE, String::new())),
        _ => value(snapshot, path),
    }
}

fn value(snapshot: &Snapshot, path: &str) -> Result<Reply, ApiError> {
    let key = key_of_path(path).ok_or_else(|| ApiError::not_found("not found"))?;
    if !is_guest_key(&key) || is_hidden_key(&key) {
        return Err(ApiError::forbidden("not authorized"));
    }
    let value = snapshot.config.get(&*key);
    let value = value.ok_or_else(|| ApiError::not_found("not found"))?;
    Ok(text(VALUE, value.clone()))
}

fn events(
    api: &GuestApi,
    mut request: Request<Incoming>,
    stop: CancellationToken,
    extend: &(dyn Fn(Duration) + Sync),
) -> Result<Reply, ApiError> {
    let query = request.uri().query().unwrap_or_default();
    let kinds = kinds(query, &[event::CONFIG, event::DEVICE])?;
    let source = Source {
        events: api.data.events(),
        permits: &api.listeners,
        shutdown: &api.shutdown,
        stop,
    };
    let reply = send_events(&source, kinds, &mut request)?;
    extend(Duration::MAX);
    Ok(reply)
}

/// `PATCH /1.0`: reports the state of the instance to the host.
async fn report(api: &GuestApi, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let limit = defaults::MAX_GUEST_BODY_BYTES;
    let report: StateReport = read_json_within(request.into_body(), limit).await?;
    let _permit = api
        .reports
        .try_acquire()
        .map_err(|_| ApiError::busy("too many reports are waiting for the host"))?;
    match api.data.report(report.state).await {
        Ok(()) => Ok(text(VALUE, String::new())),
        Err(CallError::Refused { status, text }) => Err(ApiError::new(status, text)),
        Err(error) => Err(forward::failed(&error)),
    }
}
