//! Events of `GET /1.0/events`, one JSON object each.

use serde::{Deserialize, Serialize};

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// The kind: `operation`, `config`, `device`, `logging` or `lifecycle`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The time on the agent's clock, in RFC 3339.
    pub timestamp: String,
    /// The content; for `operation` an [`Operation`](crate::operation::Operation).
    #[serde(default)]
    pub metadata: serde_json::Value,
    /// Cluster member it happened on; agents leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// Project it belongs to; agents leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project: String,
}

impl Event {
    /// An event of a kind; `timestamp` is in RFC 3339.
    #[must_use]
    pub fn new(kind: &str, timestamp: String, metadata: serde_json::Value) -> Self {
        Self {
            kind: kind.to_owned(),
            timestamp,
            metadata,
            location: String::new(),
            project: String::new(),
        }
    }
}

/// An event to publish, the body of `POST /1.0/events`. Other keys of an [`Event`] are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NewEvent {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// The content.
    #[serde(default)]
    pub metadata: serde_json::Value,
}

impl NewEvent {
    /// An event of a kind.
    #[must_use]
    pub fn new(kind: &str, metadata: serde_json::Value) -> Self {
        Self {
            kind: kind.to_owned(),
            metadata,
        }
    }
}

/// The default kinds of a listener.
pub const DEFAULT_KINDS: &[&str] = &["logging", "operation", "lifecycle", "config", "device"];

/// Kind of an event about a changed key of the instance.
pub const CONFIG: &str = "config";

/// Kind of an event about an added, removed or updated device.
pub const DEVICE: &str = "device";

/// Kind of an event with an operation's state.
pub const OPERATION: &str = "operation";
