//! Publishes events to listeners. A publisher never waits for a listener.
//!
//! All listeners share one log. An event stays in it until every listener has received it. Memory is
//! bounded by [`defaults::MAX_EVENT_LOG_BYTES`]: above it the oldest events are dropped, and a listener
//! that had not received them gets [`Lagged`].

use std::collections::VecDeque;

use serde_json::Value;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use vsock_agent_protocol::event::Event;

use crate::{defaults, system::clock};

/// The event log and its listeners. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Events(watch::Sender<Log>);

impl Events {
    /// A log with no listeners and no events.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Publishes an event to every listener. Does not block. `metadata` must not contain a secret.
    pub(crate) fn publish(&self, kind: &str, metadata: Value) {
        self.0.send_if_modified(|log| {
            if log.listeners == 0 {
                return false;
            }
            let event = Event::new(kind, clock::now(), metadata);
            // Fails only for a map whose keys are not strings; there is none.
            let text = serde_json::to_string(&event).unwrap_or_default();
            log.push(event.kind, text.into());
            true
        });
    }

    /// Receives events of `kinds` from now on.
    pub(crate) fn listen(&self, kinds: Vec<String>) -> Listener {
        let changes = self.0.subscribe();
        let mut next = 0;
        self.0.send_if_modified(|log| {
            log.listeners += 1;
            next = log.end();
            false
        });
        Listener {
            log: self.0.clone(),
            changes,
            kinds,
            next,
        }
    }
}

/// Receives the events of some kinds, in order.
#[derive(Debug)]
pub(crate) struct Listener {
    log: watch::Sender<Log>,
    changes: watch::Receiver<Log>,
    kinds: Vec<String>,
    /// Number of the next event to be received.
    next: u64,
}

impl Listener {
    /// The next event, as JSON. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Lagged`] once when the next event has been dropped. The next call returns a later one.
    pub(crate) async fn next(&mut self) -> Result<Utf8Bytes, Lagged> {
        loop {
            // Marked before the check, so that a change in between is not missed.
            self.changes.mark_unchanged();
            let mut taken = Ok(None);
            self.log.send_if_modified(|log| {
                taken = log.take(&mut self.next, &self.kinds);
                false
            });
            match taken? {
                Some(text) => return Ok(text),
                // `self.log` keeps the channel open.
                None => drop(self.changes.changed().await),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.log.send_if_modified(|log| {
            log.leave(self.next);
            false
        });
    }
}

/// Events were dropped before the listener received them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{missed} events are lost")]
pub(crate) struct Lagged {
    missed: u64,
}

/// The events that not all listeners have received.
#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Entry>,
    /// Number of the first entry. Events are numbered from 0.
    first: u64,
    /// Memory of all entries.
    bytes: usize,
    listeners: usize,
}

#[derive(Debug)]
struct Entry {
    kind: String,
    text: Utf8Bytes,
    /// Listeners that have not received it.
    waiting: usize,
}

impl Entry {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.kind.len() + self.text.len()
    }
}

impl Log {
    /// Number of the next event.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn push(&mut self, kind: String, text: Utf8Bytes) {
        let entry = Entry {
            kind,
            text,
            waiting: self.listeners,
        };
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.bytes > defaults::MAX_EVENT_LOG_BYTES {
            self.pop();
        }
    }

    /// Takes the first event of `kinds` from `next` on.
    fn take(&mut self, next: &mut u64, kinds: &[String]) -> Result<Option<Utf8Bytes>, Lagged> {
        let mut found = None;
        while found.is_none() {
            if *next < self.first {
                let missed = self.first - *next;
                *next = self.first;
                return Err(Lagged { missed });
            }
            let index = usize::try_from(*next - self.first).unwrap_or(usize::MAX);
            let Some(entry) = self.entries.get_mut(index) else {
                break;
            };
            entry.waiting -= 1;
            *next += 1;
            found = kinds.contains(&entry.kind).then(|| entry.text.clone());
            self.trim();
        }
        Ok(found)
    }

    /// Removes a listener whose next event is `next`.
    fn leave(&mut self, next: u64) {
        self.listeners -= 1;
        let taken = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        for entry in self.entries.iter_mut().skip(taken) {
            entry.waiting -= 1;
        }
        self.trim();
    }

    /// Drops the events that all listeners have received.
    fn trim(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.waiting == 0) {
            self.pop();
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(16);
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;

    use super::*;

    fn kinds() -> Vec<String> {
        vec!["a".to_owned(), "b".to_owned()]
    }

    fn number(text: &Utf8Bytes) -> u64 {
        let event: Value = serde_json::from_str(text).unwrap();
        event["metadata"].as_u64().unwrap()
    }

    #[tokio::test]
    async fn a_slow_listener_gets_all_events_in_order() {
        let events = Events::new();
        let mut slow = events.listen(kinds());
        let mut fast = events.listen(kinds());
        for n in 0..5000_u64 {
            events.publish("c", json!("not for them"));
            events.publish(if n % 2 == 0 { "a" } else { "b" }, json!(n));
            assert_eq!(number(&fast.next().await.unwrap()), n);
        }
        for n in 0..5000_u64 {
            assert_eq!(number(&slow.next().await.unwrap()), n);
        }
        assert_eq!(slow.next().now_or_never(), None);
        let log = events.0.borrow();
        assert_eq!((log.entries.len(), log.bytes), (0, 0));
    }

    #[tokio::test]
    async fn the_event_log_is_bounded_and_only_a_slow_listener_lags() {
        let events = Events::new();
        let mut slow = events.listen(kinds());
        let mut fast = events.listen(kinds());
        let large = "x".repeat(defaults::MAX_EVENT_LOG_BYTES / 4);
        for _ in 0..8 {
            events.publish("a", json!(large));
            fast.next().await.unwrap();
            assert!(events.0.borrow().bytes <= defaults::MAX_EVENT_LOG_BYTES);
        }
        assert_eq!(slow.next().await, Err(Lagged { missed: 5 }));
        drop(slow);
        assert_eq!(events.0.borrow().bytes, 0);
    }

    #[tokio::test]
    async fn events_without_a_listener_are_dropped() {
        let events = Events::new();
        events.publish("a", json!(1));
        let mut listener = events.listen(kinds());
        events.publish("a", json!(2));
        let gone = events.listen(kinds());
        drop(gone);
        assert_eq!(number(&listener.next().await.unwrap()), 2);
        let (waited, ()) = tokio::join!(listener.next(), async {
            tokio::task::yield_now().await;
            events.publish("b", json!(3));
        });
        assert_eq!(number(&waited.unwrap()), 3);
    }
}
