//! Events: what `GET /1.0/events` carries, one JSON object each.

use serde::{Deserialize, Serialize};

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The kind: `operation`, `config`, `device`, `logging` or `lifecycle`.
    #[serde(rename = "type")]
    pub kind: String,
    /// When, on the agent's clock, in RFC 3339.
    pub timestamp: String,
    /// The matter itself; for `operation` an [`Operation`](crate::operation::Operation).
    #[serde(default)]
    pub metadata: serde_json::Value,
    /// Cluster member it happened on; agents leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub location: String,
    /// Project it belongs to; agents leave it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project: String,
}

/// An event that somebody else wants told: what `POST /1.0/events` takes. Any other key of an
/// [`Event`] may be there, and is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// The matter itself.
    #[serde(default)]
    pub metadata: serde_json::Value,
}

/// Kinds a listener gets that asks for none.
pub const DEFAULT_KINDS: &[&str] = &["logging", "operation", "lifecycle", "config", "device"];

/// The kind of event that says that a key of the instance changed.
pub const CONFIG: &str = "config";

/// The kind of event that says that a device came, went or changed.
pub const DEVICE: &str = "device";

/// The kind of event that carries an operation's state.
pub const OPERATION: &str = "operation";
