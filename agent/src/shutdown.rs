//! The one way everything stops: stop accepting, let sessions end, cut off what is left.
//!
//! [`Shutdown`] is handed to every task the agent starts. Dropping a future is not enough for a
//! session with a child, so tasks watch [`Shutdown::child_token`] and leave by themselves.

use std::{future::Future, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Token and tracker in one: who must stop, and who has not yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Starts a task that the shutdown waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // The runtime's code is there once for each kind of task; boxed, all are of one kind.
        self.tasks.spawn(work.boxed());
    }

    /// A token that is cancelled with everything else, or on its own.
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    /// Tells every task to stop and waits for them, `limit` at most. True if all of them ended.
    pub(crate) async fn finish(&self, limit: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        timeout(limit, self.tasks.wait()).await.is_ok()
    }
}
