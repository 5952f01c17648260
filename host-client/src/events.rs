//! A stream of an agent's events.

use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::Message;

use crate::{endpoint::Endpoint, error::ClientError, protocol::event::Event, ws::Socket};

/// A stream of events. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    /// `None` after the stream has ended.
    socket: Result<Socket, Ended>,
    endpoint: Endpoint,
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
    pub(crate) const fn new(socket: Socket, endpoint: Endpoint) -> Self {
        Self {
            socket: Ok(socket),
            endpoint,
        }
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
        let next = self.receive().await;
        next.map_err(|error| error.at(&self.endpoint))
    }

    async fn receive(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            let socket = match &mut self.socket {
                Ok(socket) => socket,
                Err(ended) => return ended.outcome(),
            };
            let ended = match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(text.as_str())
                        .map(Some)
                        .map_err(|error| {
                            ClientError::protocol_because(
                                "an event is not what it should be",
                                error,
                            )
                        });
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
