//! Ends work on files on a signal.

use std::time::Duration;

use tokio::time::timeout;
use vsock_agent_client::Sftp;

use crate::signals::Signals;

/// Time for a guest to remove temporary files.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `work` until it completes or a signal arrives. Then waits until the temporary files of
/// `sessions` are removed.
///
/// # Errors
///
/// The number of the signal.
pub(super) async fn unless_interrupted<T>(
    signals: &mut Signals,
    sessions: &[&Sftp],
    work: impl Future<Output = T>,
) -> Result<T, i32> {
    // Dropping `work` starts the removal of its temporary files.
    let signal = tokio::select! {
        done = work => return Ok(done),
        signal = signals.next() => signal,
    };
    for sftp in sessions {
        let _ = timeout(CLEAN_UP_TIMEOUT, sftp.removed()).await;
    }
    Err(signal)
}
