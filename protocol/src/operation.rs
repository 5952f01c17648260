//! Operations: work that outlives the request that started it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::null::null_as_default;

/// Id of an operation: a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(Uuid);

impl OperationId {
    /// Makes a version 4 UUID of random bytes.
    #[must_use]
    pub fn from_random_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for OperationId {
    type Err = ParseOperationIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|source| ParseOperationIdError { source })
    }
}

/// Text that is not an operation's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an operation id")]
pub struct ParseOperationIdError {
    source: uuid::Error,
}

/// The status of an operation. The numbers are LXD's status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OperationStatus {
    /// Not started.
    Pending = 105,
    /// Running.
    Running = 103,
    /// Cancelled, and not ended yet.
    Cancelling = 104,
    /// Succeeded.
    Success = 200,
    /// Failed; the reason is in `err`.
    Failure = 400,
    /// Cancelled by a client.
    Cancelled = 401,
}

impl OperationStatus {
    /// Every status, for tables.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Running,
        Self::Cancelling,
        Self::Success,
        Self::Failure,
        Self::Cancelled,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Cancelling => "Cancelling",
            Self::Success => "Success",
            Self::Failure => "Failure",
            Self::Cancelled => "Cancelled",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.code() >= FIRST_FINAL_STATUS_CODE
    }
}

/// Status codes from here on are final (LXD's `api.StatusCode.IsFinal`).
const FIRST_FINAL_STATUS_CODE: u16 = 200;

/// The state of an operation as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Operation {
    /// The id.
    pub id: OperationId,
    /// `websocket` for a command.
    #[serde(default)]
    pub class: String,
    /// For a person: `Executing command`.
    #[serde(default)]
    pub description: String,
    /// When it was created, on the agent's clock, in RFC 3339.
    #[serde(default)]
    pub created_at: String,
    /// When it last changed, on the agent's clock, in RFC 3339.
    #[serde(default)]
    pub updated_at: String,
    /// The name of `status_code`.
    #[serde(default)]
    pub status: String,
    /// One of [`OperationStatus`]; final from 200 on.
    pub status_code: u16,
    /// Resources of the operation; empty in agents.
    #[serde(default, deserialize_with = "null_as_default")]
    pub resources: BTreeMap<String, Vec<String>>,
    /// Details; see [`crate::exec`].
    #[serde(default)]
    pub metadata: serde_json::Value,
    /// Whether `DELETE` may end it.
    #[serde(default)]
    pub may_cancel: bool,
    /// The cause of a failure, or empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub err: String,
    /// Cluster member; empty in agents.
    #[serde(default, deserialize_with = "null_as_default")]
    pub location: String,
}

impl Operation {
    /// A running operation that can be cancelled, created at `now`, in RFC 3339.
    #[must_use]
    pub fn new(id: OperationId, class: &str, description: &str, now: String) -> Self {
        let mut operation = Self {
            id,
            class: class.to_owned(),
            description: description.to_owned(),
            created_at: now.clone(),
            updated_at: now,
            status: String::new(),
            status_code: 0,
            resources: BTreeMap::new(),
            metadata: serde_json::Value::Null,
            may_cancel: true,
            err: String::new(),
            location: String::new(),
        };
        operation.set_status(OperationStatus::Running);
        operation
    }

    /// Sets the status, its name and its number.
    pub fn set_status(&mut self, status: OperationStatus) {
        status.name().clone_into(&mut self.status);
        self.status_code = status.code();
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.status_code >= FIRST_FINAL_STATUS_CODE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_it_is_read() {
        let text = "01234567-89ab-4cde-8f01-23456789abcd";
        assert_eq!(text.parse::<OperationId>().unwrap().to_string(), text);
    }

    #[test]
    fn an_id_that_climbs_out_of_its_path_is_refused() {
        "../../etc".parse::<OperationId>().unwrap_err();
    }

    #[test]
    fn only_ends_are_final() {
        let ends: Vec<_> = OperationStatus::ALL
            .into_iter()
            .filter(|s| s.is_final())
            .collect();
        assert_eq!(
            ends,
            [
                OperationStatus::Success,
                OperationStatus::Failure,
                OperationStatus::Cancelled
            ]
        );
    }
}
