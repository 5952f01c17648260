//! What belongs to one runtime, of several that use a client.

use tokio::runtime::{Handle, Id};

/// Something whose tasks are on the runtime that it was made on: elsewhere it may never go on, because that
/// runtime need not run.
#[derive(Debug)]
pub(crate) struct OfRuntime<T> {
    runtime: Id,
    value: T,
}

impl<T> OfRuntime<T> {
    /// `value`, whose tasks are on the current runtime.
    pub(crate) fn new(value: T) -> Self {
        Self {
            runtime: Handle::current().id(),
            value,
        }
    }

    /// Whether it is of the current runtime.
    pub(crate) fn is_here(&self) -> bool {
        Handle::try_current().is_ok_and(|current| current.id() == self.runtime)
    }

    pub(crate) fn into_inner(self) -> T {
        self.value
    }
}
