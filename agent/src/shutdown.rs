//! The shutdown: stop accepting, let sessions end, abort the rest.
//!
//! Every task of the agent has a [`Shutdown`]. Dropping a future is not enough for a session with a child
//! process, so tasks watch [`Shutdown::child_token`] and end themselves.

use std::{future::Future, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A cancellation token and a task tracker. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Starts a task that the shutdown waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // The runtime's code is compiled for each type of future; boxed, all have one type.
        self.tasks.spawn(work.boxed());
    }

    /// A token that is cancelled with everything else, or on its own.
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
