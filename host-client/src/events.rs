//! A stream of an agent's events.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Message;

use crate::{agent::Agent, error::ClientError, protocol::event::Event, ws::Socket};

/// Shortest time between two connections of [`ReconnectingEvents`].
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);

/// A stream of events. Dropping it closes the connection.
///
/// As a [`Stream`] it ends after its first [`ClientError::ConnectionLost`].
#[derive(Debug)]
pub struct Events {
    /// `Err` after the stream has ended.
    socket: Result<Socket, Ended>,
    /// Whether the end was returned.
    is_over: bool,
    agent: Arc<Agent>,
    kinds: Vec<String>,
}

/// How the stream ended, returned again by every later call.
#[derive(Debug, Clone)]
enum Ended {
    ByAgent,
    Lost(String),
}

impl Ended {
    fn outcome(&self) -> Result<Option<Event>, ClientError> {
        match self {
            Self::ByAgent => Ok(None),
            Self::Lost(reason) => Err(ClientError::lost(LISTENING, reason.clone())),
        }
    }
}

/// The action in errors.
pub(crate) const LISTENING: &str = "listening for events";

impl Events {
    /// Events of these kinds from now on; without kinds, of all kinds of the agent.
    pub(crate) async fn open(agent: Arc<Agent>, kinds: Vec<String>) -> Result<Self, ClientError> {
        let names: Vec<_> = kinds.iter().map(String::as_str).collect();
        let socket = agent.event_socket(&names).await?;
        Ok(Self {
            socket: Ok(socket),
            is_over: false,
            agent,
            kinds,
        })
    }

    /// The next event; `None` when the agent has ended the stream. After the end, every call returns the
    /// same result.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the connection ended without a close frame: events may be
    /// missing. [`ClientError::Protocol`] for an invalid event; later ones may be valid.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The same events, on a new connection whenever one is lost or the agent ends it.
    #[must_use]
    pub fn reconnecting(self) -> ReconnectingEvents {
        let listener = Listener {
            agent: Arc::clone(&self.agent),
            kinds: self.kinds.clone(),
            events: Some(self),
            not_before: Instant::now() + RECONNECT_INTERVAL,
            is_over: false,
        };
        ReconnectingEvents(Mutex::new(stream::unfold(listener, Listener::next).boxed()))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, ClientError>> {
        let event = ready!(self.poll_socket(cx));
        Poll::Ready(event.map_err(|error| error.at(self.agent.endpoint())))
    }

    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, ClientError>> {
        loop {
            let socket = match &mut self.socket {
                Ok(socket) => socket,
                Err(ended) => return Poll::Ready(ended.outcome()),
            };
            let ended = match ready!(socket.poll_next_unpin(cx)) {
                Some(Ok(Message::Text(text))) => {
                    return Poll::Ready(parse(text.as_str()).map(Some));
                }
                Some(Ok(Message::Close(_))) => Ended::ByAgent,
                Some(Ok(_)) => continue,
                Some(Err(error)) => Ended::Lost(error.to_string()),
                None => Ended::Lost("the connection closed".to_owned()),
            };
            self.socket = Err(ended);
        }
    }
}

fn parse(text: &str) -> Result<Event, ClientError> {
    serde_json::from_str(text)
        .map_err(|error| ClientError::protocol_because("an event is not what it should be", error))
}

impl Stream for Events {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let event = ready!(self.poll_event(cx));
        self.is_over = self.socket.is_err();
        Poll::Ready(event.transpose())
    }
}

/// What comes from [`ReconnectingEvents`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// An event.
    Event(Event),
    /// The connection was lost or ended, and there is a new one. Events in between are missing: ask for what
    /// they would have told.
    Reconnected,
}

/// Events over as many connections as it takes. Made by [`Events::reconnecting`]. Dropping it closes the
/// connection.
///
/// A connection is tried again at most once a second, each time for as long as
/// [`Timeouts::connect`](crate::Timeouts::connect).
pub struct ReconnectingEvents(
    // Only for `Sync`: it is never locked.
    Mutex<BoxStream<'static, Result<Received, ClientError>>>,
);

impl fmt::Debug for ReconnectingEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReconnectingEvents").finish_non_exhaustive()
    }
}

impl ReconnectingEvents {
    /// The next event, or that there is a new connection; `None` after an error that is not
    /// [retryable](ClientError::is_retryable).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`] or another retryable error after each time limit for connecting; the next
    /// call tries again. [`ClientError::Protocol`] for an invalid event; later ones may be valid. Any other
    /// error is the last.
    pub async fn next(&mut self) -> Option<Result<Received, ClientError>> {
        StreamExt::next(self).await
    }
}

impl Stream for ReconnectingEvents {
    type Item = Result<Received, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.0.get_mut();
        stream
            .unwrap_or_else(PoisonError::into_inner)
            .poll_next_unpin(cx)
    }
}

/// The state of [`ReconnectingEvents`].
struct Listener {
    agent: Arc<Agent>,
    kinds: Vec<String>,
    /// `None` without a connection.
    events: Option<Events>,
    /// When the next connection may be made.
    not_before: Instant,
    is_over: bool,
}

impl Listener {
    async fn next(mut self) -> Option<(Result<Received, ClientError>, Self)> {
        if self.is_over {
            return None;
        }
        if let Some(event) = self.receive().await {
            return Some((event.map(Received::Event), self));
        }
        let connected = self.reconnect().await;
        Some((connected.map(|()| Received::Reconnected), self))
    }

    /// The next event of the connection; `None`, and no connection any more, when it has ended.
    async fn receive(&mut self) -> Option<Result<Event, ClientError>> {
        let events = self.events.as_mut()?;
        let event = events.next().await.transpose();
        if events.socket.is_ok() {
            return event;
        }
        self.events = None;
        None
    }

    async fn reconnect(&mut self) -> Result<(), ClientError> {
        sleep_until(self.not_before).await;
        let events = Events::open(Arc::clone(&self.agent), self.kinds.clone()).await;
        self.not_before = Instant::now() + RECONNECT_INTERVAL;
        self.events = Some(events.map_err(|error| {
            self.is_over = !error.is_retryable();
            error.at(self.agent.endpoint())
        })?);
        Ok(())
    }
}
