//! `/1.0/events`: receives events by websocket or as JSON lines, and publishes one.

use http::Request;
use hyper::body::Incoming;
use tokio::{sync::oneshot, time::timeout};
use vsock_agent_protocol::event::{self, DEFAULT_KINDS, NewEvent};

use crate::{
    app::App,
    config::Feature,
    defaults,
    http::{
        event_stream::{Source, kinds, send_events},
        reply::{ApiError, Reply, read_json, sync},
    },
};

/// Sends every event from now on of the kinds in the query (`?type=a,b`).
///
/// # Errors
///
/// 400 for a bad websocket handshake or too many kinds, 503 when there are too many listeners.
pub(crate) fn get(app: &App, mut request: Request<Incoming>) -> Result<Reply, ApiError> {
    let kinds = kinds(request.uri().query().unwrap_or_default(), DEFAULT_KINDS)?;
    let source = Source {
        events: &app.events,
        permits: &app.listeners,
        shutdown: &app.shutdown,
        stop: app.shutdown.child_token(),
    };
    send_events(&source, kinds, &mut request)
}

/// `POST /1.0/events`: publishes an event with the current time. The change of a `device` event is applied
/// first.
///
/// # Errors
///
/// 400 for an invalid event.
pub(crate) async fn post(app: &App, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let event: NewEvent = read_json(request.into_body()).await?;
    if event.kind.is_empty() {
        return Err(ApiError::bad_request("the type of the event is missing"));
    }
    if event.kind == event::DEVICE && app.policy().features.has(Feature::Mounts) {
        apply_device_event(app, &event.metadata).await;
    }
    app.events.publish(&event.kind, event.metadata);
    Ok(sync(()))
}

/// Mounts an added share or unmounts a removed one. Waits [`defaults::HOTPLUG_TIMEOUT`] at most.
async fn apply_device_event(app: &App, metadata: &serde_json::Value) {
    let Some(change) = app.hotplug.change(metadata) else {
        return;
    };
    let (done, is_done) = oneshot::channel();
    let hotplug = app.hotplug.clone();
    let stop = app.shutdown.child_token();
    app.shutdown.spawn(async move {
        stop.run_until_cancelled(hotplug.apply(change)).await;
        // The receiver may have been dropped.
        let _ = done.send(());
    });
    // After a timeout the task continues.
    let _ = timeout(defaults::HOTPLUG_TIMEOUT, is_done).await;
}
