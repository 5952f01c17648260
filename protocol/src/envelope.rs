//! The envelope of JSON replies.

use serde::{Deserialize, Serialize};

use crate::null::null_as_default;

/// The type of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvelopeKind {
    /// The result, in `metadata`.
    Sync,
    /// An operation was created; its state is in `metadata`, its path in `operation`.
    Async,
    /// An error, in `error_code` and `error`.
    Error,
}

/// A reply. All seven keys are always written, as LXD does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Envelope<T> {
    /// The type of the reply.
    #[serde(rename = "type")]
    pub kind: EnvelopeKind,
    /// `Success`, `Operation created`, or empty for an error.
    #[serde(default)]
    pub status: String,
    /// 200, 100, or 0 for an error.
    #[serde(default)]
    pub status_code: u16,
    /// Path of the operation, or empty.
    #[serde(default)]
    pub operation: String,
    /// The HTTP status of an error, or 0.
    #[serde(default)]
    pub error_code: u16,
    /// The error message, or empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub error: String,
    /// The result.
    pub metadata: T,
}

impl<T> Envelope<T> {
    const fn new(kind: EnvelopeKind, metadata: T) -> Self {
        Self {
            kind,
            status: String::new(),
            status_code: 0,
            operation: String::new(),
            error_code: 0,
            error: String::new(),
            metadata,
        }
    }

    /// A result.
    pub fn sync(metadata: T) -> Self {
        let mut envelope = Self::new(EnvelopeKind::Sync, metadata);
        (envelope.status, envelope.status_code) = ("Success".to_owned(), 200);
        envelope
    }

    /// An operation was created at `path`; `metadata` is its state.
    pub fn operation_created(path: String, metadata: T) -> Self {
        let mut envelope = Self::new(EnvelopeKind::Async, metadata);
        (envelope.status, envelope.status_code) = ("Operation created".to_owned(), 100);
        envelope.operation = path;
        envelope
    }
}

impl Envelope<()> {
    /// An error with an HTTP status and a message.
    #[must_use]
    pub fn error(code: u16, text: String) -> Self {
        let mut envelope = Self::new(EnvelopeKind::Error, ());
        (envelope.error_code, envelope.error) = (code, text);
        envelope
    }
}
