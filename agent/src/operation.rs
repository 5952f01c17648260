//! Background work a client can list, wait for, join and cancel.
//!
//! Called by `api`. Owns the table of operations and their tasks, independent of what they do: a task gets
//! a [`Handle`](registry::Handle) to finish the operation, and its sockets through a channel.

mod registry;
mod secret;

use vsock_agent_protocol::operation::OperationId;

pub(crate) use registry::{Handle, New, Outcome, Registry};
pub(crate) use secret::{NoRandomness, random_secret};

/// An error of the registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OperationError {
    /// There is no such operation, or it ended too long ago.
    #[error("operation {0} does not exist")]
    Unknown(OperationId),
    /// The secret is not one of the operation's, or was used already.
    #[error("the secret is wrong or was used already")]
    WrongSecret,
    /// The operation has ended, so there is nothing to cancel or join.
    #[error("the operation has ended")]
    Ended,
    /// The limit is reached.
    #[error("too many operations: {} are running", crate::defaults::MAX_SESSIONS)]
    Full,
}
