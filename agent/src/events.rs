//! Events, from whoever has one to whoever listens. A listener that is too slow is dropped, and
//! nobody waits for it.

use tokio::sync::broadcast;
use vsock_agent_protocol::event::Event;

use crate::{clock, defaults};

/// The bus. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    /// A bus nobody listens to yet.
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(defaults::EVENT_DEPTH))
    }

    /// Tells every listener, now. Never waits. `metadata` must have no secret in it.
    pub(crate) fn publish(&self, kind: &str, metadata: serde_json::Value) {
        // An error only means that nobody listens.
        let _ = self.0.send(Event {
            kind: kind.to_owned(),
            timestamp: clock::now(),
            metadata,
            location: String::new(),
            project: String::new(),
        });
    }

    /// Hears all events from now on. A listener that lags [`defaults::EVENT_DEPTH`] behind is
    /// told so by its next `recv`, and must leave.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
