//! Time limits of a client.

use std::time::Duration;

use crate::connect::DEFAULT_CONNECT_TIMEOUT;

/// Shortest allowed [`Timeouts::silence`]: guests under emulation are slow.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// Time limits of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// Time limit for connecting, over all attempts. The default is 30 s.
    pub connect: Duration,
    /// Time limit for an agent that sends nothing: instead of a reply, the next pong while a command
    /// runs, or the reply to an SFTP request. After it, the request fails with
    /// [`Silent`](crate::ClientError::Silent), the command with
    /// [`ConnectionLost`](crate::ClientError::ConnectionLost).
    ///
    /// `None` is 30 s for replies, 45 s for commands, and 300 s for files, whose disk may be slow. Less
    /// than a second counts as a second.
    pub silence: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: DEFAULT_CONNECT_TIMEOUT,
            silence: None,
        }
    }
}

impl Timeouts {
    /// Sets [`connect`](Self::connect).
    #[must_use]
    pub const fn with_connect(mut self, timeout: Duration) -> Self {
        self.connect = timeout;
        self
    }

    /// Sets [`silence`](Self::silence).
    #[must_use]
    pub const fn with_silence(mut self, timeout: Duration) -> Self {
        self.silence = Some(timeout);
        self
    }

    /// The value of `silence`, or `usual` if it is `None`.
    pub(crate) fn silence_or(self, usual: Duration) -> Duration {
        self.silence
            .map_or(usual, |silence| silence.max(MIN_SILENCE))
    }
}
