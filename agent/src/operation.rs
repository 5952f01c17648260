//! LXD's operations: background tasks that a client can list, wait for, connect to and cancel.
//!
//! Called by `api`. Owns the table of operations and their tasks, independent of what they do. A task gets a
//! [`Handle`](registry::Handle) with its websockets, and returns the outcome.

mod registry;
mod secret;

use vsock_agent_protocol::operation::OperationId;

pub(crate) use registry::{Handle, New, Outcome, Registry};
pub(crate) use secret::{NoRandomness, random_secret};

/// An error of the registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OperationError {
    /// There is no such operation, or it is no longer kept.
    #[error("operation {0} does not exist")]
    Unknown(OperationId),
    /// The secret is wrong or was used before.
    #[error("the secret is wrong or was used already")]
    WrongSecret,
    /// The operation has ended, and cannot be cancelled or connected to.
    #[error("the operation has ended")]
    Ended,
    /// The limit of running operations is reached.
    #[error("too many operations: {} are running", crate::defaults::MAX_SESSIONS)]
    Full,
}
