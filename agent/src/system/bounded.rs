//! Blocking calls that may hang in the kernel, with a time limit. Each has a thread of its own, which is
//! detached on a timeout. The runtime's threads are not used, because the runtime waits for them at
//! shutdown.

use std::{thread, time::Duration};

use tokio::{sync::oneshot, time::timeout};

/// Runs `work` in a thread and waits for its result, `limit` at most. `None` on a timeout, a panic or
/// without a thread; these are logged, with `what` as the name of the call.
pub(crate) async fn within<T: Send + 'static>(
    limit: Duration,
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name(what.to_owned());
    let started = thread.spawn(move || {
        // The receiver may have been dropped.
        let _ = sender.send(work());
    });
    if let Err(error) = started {
        tracing::error!(what, %error, "cannot start a thread");
        return None;
    }
    match timeout(limit, receiver).await {
        Ok(Ok(result)) => Some(result),
        Ok(Err(_)) => {
            tracing::error!(what, "a blocking call panicked");
            None
        }
        Err(_) => {
            tracing::error!(what, ?limit, "a blocking call timed out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_blocking_call_times_out_or_panics_without_a_result() {
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
