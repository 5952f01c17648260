//! `/1.0/events`: hear them, by websocket or as a stream of JSON lines, and tell them.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::{
    select,
    sync::{
        OwnedSemaphorePermit,
        broadcast::{self, error::RecvError},
        oneshot,
    },
    time::{interval, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::event::{self, DEFAULT_KINDS, Event, NewEvent};

use super::query::parameter;
use crate::{
    app::App,
    defaults,
    reply::{ApiError, Reply, read_json, sync},
    ws::{self, WebSocket},
};

/// Pings without an answer after which a listener is taken for gone.
const MAX_MISSED_PINGS: u32 = 2;

/// Sends every event from now on whose kind is asked for (`?type=a,b`).
///
/// # Errors
///
/// 400 for a bad websocket handshake, 503 when there are too many listeners.
pub(crate) fn get(app: &Arc<App>, mut request: Request<Incoming>) -> Result<Reply, ApiError> {
    let kinds = kinds(request.uri().query().unwrap_or_default());
    let listener = Listener {
        kinds,
        events: app.events.listen(),
        _place: Arc::clone(&app.listeners)
            .try_acquire_owned()
            .map_err(|_| {
                let limit = defaults::MAX_LISTENERS;
                ApiError::busy(format!("too many listeners to events: {limit} are there"))
            })?,
    };
    if !ws::is_asked_for(request.headers()) {
        return Ok(stream(listener, app.shutdown.child_token()));
    }
    let (reply, upgrading) = ws::accept(&mut request)?;
    let stop = app.shutdown.child_token();
    app.shutdown.spawn(async move {
        if let Some(socket) = upgrading.open(defaults::WS_SMALL_READ_BUFFER_BYTES).await {
            send(socket, listener, stop).await;
        }
    });
    Ok(reply)
}

/// `POST /1.0/events`: tells an event to everybody who listens, as of now. What it says of a
/// device is done first.
///
/// # Errors
///
/// 400 for what is no event.
pub(crate) async fn post(app: &App, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let event: NewEvent = read_json(request.into_body()).await?;
    if event.kind.is_empty() {
        return Err(ApiError::bad_request("an event has a type"));
    }
    if event.kind == event::DEVICE {
        follow(app, &event.metadata).await;
    }
    app.events.publish(&event.kind, event.metadata);
    Ok(sync(()))
}

/// Mounts a share that has come, or takes one away that has gone, and waits a moment for it.
async fn follow(app: &App, metadata: &serde_json::Value) {
    let Some(change) = app.hotplug.change(metadata) else {
        return;
    };
    let (done, is_done) = oneshot::channel();
    let hotplug = app.hotplug.clone();
    let stop = app.shutdown.child_token();
    app.shutdown.spawn(async move {
        stop.run_until_cancelled(hotplug.follow(change)).await;
        // Nobody may be waiting any more.
        let _ = done.send(());
    });
    // Too late is no error: it goes on.
    let _ = timeout(defaults::HOTPLUG_TIMEOUT, is_done).await;
}

fn kinds(query: &str) -> Vec<String> {
    match parameter(query, "type").as_deref() {
        None | Some("") => DEFAULT_KINDS.iter().map(ToString::to_string).collect(),
        Some(asked) => asked.split(',').map(str::to_owned).collect(),
    }
}

/// The events of some kinds.
struct Listener {
    kinds: Vec<String>,
    events: broadcast::Receiver<Event>,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    /// The next event, as JSON. `None` when it has lagged too far behind, or all is over.
    async fn next(&mut self) -> Option<String> {
        loop {
            let event = match self.events.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a listener to events is too slow and is dropped");
                    return None;
                }
                Err(RecvError::Closed) => return None,
            };
            if self.kinds.contains(&event.kind) {
                return serde_json::to_string(&event).ok();
            }
        }
    }
}

/// Sends events as text messages until the client sends something, leaves, or is too slow.
async fn send(mut socket: WebSocket, mut listener: Listener, stop: CancellationToken) {
    let mut ping = interval(defaults::EVENT_PING);
    let mut missed = 0;
    loop {
        let message = select! {
            event = listener.next() => match event {
                Some(event) => Message::text(event),
                None => break,
            },
            _ = ping.tick() => {
                if missed > MAX_MISSED_PINGS {
                    break;
                }
                missed += 1;
                Message::Ping(Bytes::from_static(b"keepalive"))
            }
            incoming = socket.next() => match incoming {
                Some(Ok(Message::Pong(_))) => {
                    missed = 0;
                    continue;
                }
                Some(Ok(Message::Ping(_))) => continue,
                _ => break,
            },
            () = stop.cancelled() => break,
        };
        if !matches!(
            timeout(defaults::EVENT_WRITE_TIMEOUT, socket.send(message)).await,
            Ok(Ok(()))
        ) {
            return;
        }
    }
    ws::linger(socket).await;
}

/// A body without an end: one event a line.
fn stream(listener: Listener, stop: CancellationToken) -> Reply {
    let lines = futures_util::stream::unfold((listener, stop), |(mut listener, stop)| async move {
        let event = select! {
            event = listener.next() => event?,
            () = stop.cancelled() => return None,
        };
        let line = Frame::data(Bytes::from(event + "\n"));
        Some((Ok::<_, Infallible>(line), (listener, stop)))
    });
    let mut reply = Response::new(StreamBody::new(lines).boxed_unsync());
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_split_at_commas() {
        assert_eq!(
            kinds("a=b&type=operation%2Cconfig"),
            ["operation", "config"]
        );
        assert_eq!(kinds("").len(), DEFAULT_KINDS.len());
    }
}
