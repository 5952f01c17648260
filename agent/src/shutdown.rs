//! Graceful shutdown: stop accepting, wait for sessions to end, abort the rest.
//!
//! Tasks are started by [`Shutdown::spawn`]. Dropping a future does not end a child process, so tasks watch
//! [`Shutdown::child_token`] and end themselves.

use std::{future::Future, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::system::memory;

/// A cancellation token and a task tracker. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Starts a task that the shutdown waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Boxed, so that the runtime's code is compiled for one type of future.
        self.tasks.spawn(work.map(|()| memory::used()).boxed());
    }

    /// A token that is cancelled at the shutdown, or on its own.
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// Cancels every task and waits for them, `limit` at most. True if all of them ended.
    pub(crate) async fn finish(&self, limit: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        timeout(limit, self.tasks.wait()).await.is_ok()
    }
}
