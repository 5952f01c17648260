//! Background work a client can list, wait for, join and cancel.
//!
//! Called by `api`. Owns the table of operations and the tasks that drive them; never knows what
//! an operation does: a task gets an [`Operation`](registry::Handle) to finish, and its sockets
//! through a channel.

mod registry;
mod secret;

use vsock_agent_protocol::operation::OperationId;

pub(crate) use registry::{Handle, New, Outcome, Registry};
pub(crate) use secret::{NoRandomness, Secret};

/// Why the registry refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OperationError {
    /// There is no such operation, or it ended too long ago.
    #[error("operation {0} does not exist")]
    Unknown(OperationId),
    /// The secret is not one of this operation's, or was used already.
    #[error("the secret is wrong or was used already")]
    WrongSecret,
    /// It has ended, so that there is nothing to cancel or join.
    #[error("the operation has ended")]
    Ended,
    /// There are as many as there may be.
    #[error("too many operations: {} are running", crate::defaults::MAX_SESSIONS)]
    Full,
}
