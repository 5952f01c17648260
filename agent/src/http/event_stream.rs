//! Sends events to one client, by websocket or as a stream of JSON lines.
//!
//! Called by `api/events.rs` for hosts, and by `guest_api/` for programs in the guest, each with its own
//! [`Events`].

use std::{io, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    select,
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::SendTimeoutError},
    },
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, Utf8Bytes},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_transport::Closer;

use crate::{
    defaults,
    events::{self, Events},
    http::{
        query::parameter,
        reply::{ApiError, Reply},
        ws::{self, Carries},
    },
    shutdown::Shutdown,
};

/// Pings without an answer after which a listener is dropped.
const MAX_MISSED_PINGS: u32 = 2;

/// Longest list of kinds in a request, in bytes. All kinds together take 40.
const MAX_KINDS_BYTES: usize = 256;

/// The kinds in a query (`?type=a,b`), or all of `default`.
///
/// # Errors
///
/// 400 for more than [`MAX_KINDS_BYTES`]: every listener stores them, and compares each event.
pub(crate) fn kinds(query: &str, default: &[&str]) -> Result<Vec<String>, ApiError> {
    match parameter(query, "type").as_deref() {
        None | Some("") => Ok(default.iter().map(ToString::to_string).collect()),
        Some(asked) if asked.len() > MAX_KINDS_BYTES => Err(ApiError::bad_request(format!(
            "the types of events are longer than {MAX_KINDS_BYTES} bytes"
        ))),
        Some(asked) => Ok(asked.split(',').map(str::to_owned).collect()),
    }
}

/// The source of events, and the limit of its listeners.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) events: &'a Events,
    /// Permits of listeners.
    pub(crate) permits: &'a Arc<Semaphore>,
    pub(crate) shutdown: &'a Shutdown,
    /// Ends the streams.
    pub(crate) stop: CancellationToken,
}

/// Sends every event from now on that is of one of `kinds`.
///
/// # Errors
///
/// 400 for a bad websocket handshake, 503 when there are too many listeners.
pub(crate) fn send_events(
    source: &Source<'_>,
    kinds: Vec<String>,
    request: &mut Request<Incoming>,
) -> Result<Reply, ApiError> {
    let listener = Listener {
        events: source.events.listen(kinds),
        _permit: Arc::clone(source.permits)
            .try_acquire_owned()
            .map_err(|_| ApiError::busy("too many listeners to events"))?,
    };
    let stop = source.stop.clone();
    if !ws::is_requested(request.headers()) {
        let closer = request.extensions().get().cloned();
        return Ok(stream(listener, source.shutdown, stop, closer));
    }
    let (reply, upgrading) = ws::accept(request)?;
    source.shutdown.spawn(async move {
        if let Some(socket) = upgrading.open(Carries::Words).await {
            send(socket, listener, stop).await;
        }
    });
    Ok(reply)
}

/// A listener to events, with its permit.
struct Listener {
    events: events::Listener,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// The next event, as JSON. `None` when the listener has lagged too far behind.
    async fn next(&mut self) -> Option<Utf8Bytes> {
        let event = self.events.next().await;
        event
            .inspect_err(|error| tracing::warn!(%error, "a listener is too slow and is dropped"))
            .ok()
    }
}

/// Sends events as text messages until the client sends a message, closes the connection, or stops reading.
async fn send<S>(mut socket: WebSocketStream<S>, mut listener: Listener, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ping = interval(defaults::EVENT_PING);
    // Ticks that were missed because the agent was not scheduled must not count as missing answers.
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
        let mut sending = pin!(socket.send(message));
        let sent = match futures_util::poll!(&mut sending) {
            Poll::Ready(sent) => sent.is_ok(),
            Poll::Pending => {
                // The buffers are full, so this ends when the client has read something. That counts as an
                // answer to a ping, which is queued behind these bytes.
                missed = 0;
                matches!(
                    timeout(defaults::EVENT_WRITE_TIMEOUT, sending).await,
                    Ok(Ok(()))
                )
            }
        };
        if !sent {
            return;
        }
    }
    ws::linger(socket).await;
}

/// An endless body with one event a line. A client that takes nothing for
/// [`defaults::EVENT_WRITE_TIMEOUT`] is cut off.
fn stream(
    mut listener: Listener,
    shutdown: &Shutdown,
    stop: CancellationToken,
    closer: Option<Closer>,
) -> Reply {
    let (lines, mut due) = mpsc::channel(1);
    shutdown.spawn(async move {
        loop {
            let event = select! {
                event = listener.next() => event,
                () = lines.closed() => return,
                () = stop.cancelled() => return,
            };
            let Some(event) = event else { return };
            let line = Frame::data(Bytes::from([event.as_bytes(), b"\n"].concat()));
            let sent = lines.send_timeout(Ok::<_, io::Error>(line), defaults::EVENT_WRITE_TIMEOUT);
            match stop.run_until_cancelled(sent).await {
                Some(Ok(())) => {}
                Some(Err(SendTimeoutError::Timeout(_))) => break,
                Some(Err(SendTimeoutError::Closed(_))) | None => return,
            }
        }
        tracing::warn!("a listener takes nothing and is dropped");
        if let Some(closer) = closer {
            closer.close();
        }
    });
    let lines = futures_util::stream::poll_fn(move |cx| due.poll_recv(cx));
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
    use std::{future::Future, time::Duration};

    use tokio::{
        io::{AsyncReadExt, DuplexStream},
        net::UnixStream,
        time::sleep,
    };
    use tokio_tungstenite::tungstenite::protocol::Role;
    use vsock_agent_transport::Stream;

    use super::*;

    /// The agent's work for a listener to the kind `a`, and the socket of that.
    async fn listening(
        events: &Events,
        stop: CancellationToken,
    ) -> (impl Future<Output = ()>, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(1024);
        let near = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
        let far = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let listener = Listener {
            events: events.listen(vec!["a".to_owned()]),
            _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        };
        (send(near, listener, stop), far)
    }

    /// The next event, after `pause`.
    async fn next_text(far: &mut WebSocketStream<DuplexStream>, pause: Duration) -> Utf8Bytes {
        loop {
            if let Message::Text(text) = far.next().await.unwrap().unwrap() {
                sleep(pause).await;
                return text;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_reads_slowly_hears_everything() {
        const EVENTS: usize = 100;
        let events = Events::new();
        let (agent, mut far) = listening(&events, CancellationToken::new()).await;
        for number in 0..EVENTS {
            events.publish(
                "a",
                serde_json::json!(format!("{number} {}", "x".repeat(500))),
            );
        }
        // Nothing at first, as a client that starts many commands, and then an event at a time.
        let slow = async {
            sleep(defaults::EVENT_WRITE_TIMEOUT - Duration::from_secs(1)).await;
            for number in 0..EVENTS {
                let event = next_text(&mut far, Duration::from_secs(9)).await;
                assert!(event.contains(&format!("{number} xxx")), "{event}");
            }
        };
        select! {
            () = agent => panic!("the listener was dropped"),
            () = slow => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_takes_nothing_is_dropped() {
        let events = Events::new();
        let (agent, _far) = listening(&events, CancellationToken::new()).await;
        events.publish("a", serde_json::json!("x".repeat(2000)));
        let longest = defaults::EVENT_WRITE_TIMEOUT + defaults::LINGER_TIMEOUT;
        timeout(longest, agent).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_was_not_scheduled_for_a_while_keeps_its_listeners() {
        let events = Events::new();
        let (agent, mut far) = listening(&events, CancellationToken::new()).await;
        let mut agent = Box::pin(agent);
        assert!(futures_util::poll!(&mut agent).is_pending());
        tokio::time::advance(Duration::from_secs(45)).await;
        for _ in 0..10 {
            assert!(futures_util::poll!(&mut agent).is_pending());
        }
        events.publish("a", serde_json::json!("late"));
        select! {
            () = agent => panic!("the listener was dropped"),
            text = next_text(&mut far, Duration::ZERO) => assert!(text.contains("late"), "{text}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_does_not_read_its_lines_is_cut_off() {
        let events = Events::new();
        let permits = Arc::new(Semaphore::new(1));
        let listener = Listener {
            events: events.listen(vec!["a".to_owned()]),
            _permit: Arc::clone(&permits).try_acquire_owned().unwrap(),
        };
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Stream::from(ours);
        let (shutdown, stop) = (Shutdown::default(), CancellationToken::new());
        let _body = stream(listener, &shutdown, stop, Some(ours.closer()));
        for _ in 0..2 {
            events.publish("a", serde_json::json!(""));
        }
        let longest = defaults::EVENT_WRITE_TIMEOUT + Duration::from_secs(1);
        drop(timeout(longest, permits.acquire()).await.unwrap());
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn kinds_are_split_at_commas() {
        assert_eq!(
            kinds("a=b&type=operation%2Cconfig", &[]).unwrap(),
            ["operation", "config"]
        );
        assert_eq!(kinds("", &["config"]).unwrap(), ["config"]);
    }

    #[test]
    fn kinds_without_end_are_refused() {
        kinds(&format!("type={}", "a,".repeat(MAX_KINDS_BYTES)), &[]).unwrap_err();
    }
}
