//! Work that may hang in the kernel, where nothing can end it: a thread of its own does it, and is
//! left behind when it takes too long. The runtime's threads are not used for it, because the
//! runtime waits for them at the end.

use std::{thread, time::Duration};

use tokio::{sync::oneshot, time::timeout};

/// Runs the work in a thread and waits for its result, `limit` at most. `None` on a timeout, a panic or
/// without a thread, which is logged.
pub(crate) async fn within<T: Send + 'static>(
    limit: Duration,
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (answer, due) = oneshot::channel();
    let thread = thread::Builder::new().name(what.to_owned());
    let started = thread.spawn(move || {
        // The receiver may have been dropped.
        let _ = answer.send(work());
    });
    if let Err(error) = started {
        tracing::error!(what, %error, "cannot start a thread");
        return None;
    }
    match timeout(limit, due).await {
        Ok(Ok(result)) => Some(result),
        Ok(Err(_)) => {
            tracing::error!(what, "this failed");
            None
        }
        Err(_) => {
            tracing::error!(
                what,
                ?limit,
                "this takes too long; the agent goes on without it"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_hangs_is_left_behind() {
        let long = Duration::from_secs(60);
        assert_eq!(within(long, "quick", || 7).await, Some(7));
        let (end, ended) = mpsc::channel::<()>();
        let hanging = within(Duration::from_millis(1), "slow", move || {
            ended.recv().is_ok()
        });
        assert_eq!(hanging.await, None);
        drop(end);
        let panics = within(long, "panic", || panic!("as the test wants"));
        assert_eq!(panics.await, None::<()>);
    }
}
