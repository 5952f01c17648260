//! Limits of the host process.

use std::time::Duration;

/// Most connections of a guest with a verified certificate. An agent needs one or two; LXD's opens one
/// for each request of a program in the guest.
pub(super) const MAX_CONNECTIONS: usize = 32;

/// Time for a guest to finish the TLS handshake. Under software emulation one costs some 50 ms.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the head of a request to arrive, an idle connection included.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a connection, so that a guest that does not read its replies cannot hold memory. An
/// agent under emulation reads a thousand keys in a tenth of it.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest head of a request, in bytes: far more than a key of 255 escaped bytes needs.
pub(super) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Most header lines of a request.
pub(super) const MAX_HEADERS: usize = 64;

/// Largest body of a request, in bytes. The only body is a state in JSON.
pub(super) const MAX_BODY_BYTES: usize = 4 * 1024;

/// Time for a request's body to arrive.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two checks of the files. A change should reach a guest within a second.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(400);

/// Queue of connections to a Unix socket that are not yet accepted. The kernel caps it at
/// `net.core.somaxconn`, 4096 since Linux 5.4.
pub(super) const BACKLOG: i32 = 4096;

/// Time between two tries to listen, and between two checks whether the socket file is still ours.
pub(super) const LISTEN_INTERVAL: Duration = Duration::from_secs(1);

/// Time to connect to an agent that was there a moment ago.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause between two connections to an agent. A booting machine may wait for this
/// connection, so the longest is short.
pub(super) const RETRY_PAUSE: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(1));

/// Length of a connection to an agent after which the pause starts from the first one again.
pub(super) const LONG_CONNECTION: Duration = Duration::from_secs(10);

/// Pause after an agent with an unexpected certificate, or that refused ours.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// Time between two polls of an agent that seems to be running.
pub(super) const PRESENCE_INTERVAL: Duration = Duration::from_secs(30);

/// Most events sent after one change. If there are more, the agent reads all its data again.
pub(super) const MAX_EVENTS: usize = 1000;

/// Largest event, in bytes of its JSON: an agent accepts 4 MiB. A larger one is sent without values.
pub(super) const MAX_EVENT_BYTES: usize = 3 * 1024 * 1024;

/// Most log lines at once that one guest can cause, and the time after which there can be one more. A
/// guest that starts has two.
pub(super) const LOG_BURST: u32 = 4;
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Time to bind a socket, and time that [`super::HostProcess::set_guests`] waits for the first tries:
/// the directory of a guest's monitor may be on a file system that does not answer.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const FIRST_TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for connections to end after a stop, before they are closed.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(3);
