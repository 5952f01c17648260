//! Waiting for something that sends no event.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Time between two looks: short beside anything a person waits for, long beside what a look costs.
const INTERVAL: Duration = Duration::from_millis(20);

/// Asks until the answer is yes, at most for `patience`. Tells whether it was.
#[must_use]
pub async fn eventually(patience: Duration, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if holds().await {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(INTERVAL).await;
    }
}
