//! Work on files that a signal ends: nothing half is left behind, unless it is to be resumed.

use std::time::Duration;

use tokio::time::timeout;
use vsock_agent_client::Sftp;

use crate::signals::Signals;

/// How long a guest may take to remove what interrupted work leaves.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// Works until that is done or a signal comes; then this is its number.
pub(super) async fn unless_interrupted<T>(
    signals: &mut Signals,
    sessions: &[&Sftp],
    work: impl Future<Output = T>,
) -> Result<T, i32> {
    let signal = {
        let work = std::pin::pin!(work);
        tokio::select! {
            done = work => return Ok(done),
            signal = signals.next() => signal,
        }
        // What was under way is dropped here, which removes what is not to be kept.
    };
    for sftp in sessions {
        // A guest that hangs is left.
        let _ = timeout(CLEAN_UP_TIMEOUT, sftp.removed()).await;
    }
    Err(signal)
}
