//! Every number of the host process, with its unit and its reason.

use std::time::Duration;

use vsock_agent_transport::Limits;

/// Most connections at once of a guest that has shown its certificate. An agent needs one or two; LXD's
/// makes one for each question a program in the guest asks.
pub(super) const MAX_CONNECTIONS: usize = 32;

/// Connections of one guest that have not shown a certificate, some 40 kB each; of a guest without one,
/// all its connections. Anybody in a guest can make them; only its root has privileged ports.
pub(super) const WAITING: Limits = Limits {
    places: 512,
    reserved: 16,
    queue: 1024,
};

/// Time for such a connection to say something before it must leave for another one, when no place is
/// free. A crowd of silent ones is gone through at 5,120 a second.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// The same for an agent's part of the handshake, also under software emulation, and for a request of a
/// guest without a certificate. A crowd is gone through at 1,024 a second.
pub(super) const LONG_GRACE: Duration = Duration::from_millis(500);

/// Time for a guest to finish the TLS handshake. Under software emulation one costs some 50 ms.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a guest whose handshake was refused to read why, and leave.
pub(super) const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for the head of a request to arrive, an idle connection included.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a connection, so that a guest that reads nothing holds nothing for long. An
/// agent under emulation has a thousand keys in a tenth of it.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest head of a request, in bytes: a key of 255 bytes, all of them escaped, and room.
pub(super) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Most header lines of a request.
pub(super) const MAX_HEADERS: usize = 64;

/// Largest body of a request, in bytes. There is one kind, and it is a word.
pub(super) const MAX_BODY_BYTES: usize = 4 * 1024;

/// Time for a request's body to arrive.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two looks at what is in files. A change should reach a guest within a second.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(400);

/// Queue of connections to a Unix socket that are not yet accepted. The kernel caps it at
/// `net.core.somaxconn`, 4096 since Linux 5.4.
pub(super) const BACKLOG: i32 = 4096;

/// Pause after an `accept` that failed for want of a resource.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time between two tries to listen, and between two looks whether the socket is still ours.
pub(super) const DOOR_INTERVAL: Duration = Duration::from_secs(1);

/// Time to connect to an agent that was there a moment ago.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause between two visits to an agent, whether they ended well or not. A machine
/// that boots waits for us at its end, so the longest is short.
pub(super) const VISIT_PAUSE: (Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(1));

/// Time with an agent after which the next pause is the first one again.
pub(super) const LONG_VISIT: Duration = Duration::from_secs(10);

/// Pause after an agent that is not the right one, or does not take us for its host.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// Time between two looks whether an agent is still there that seems to be.
pub(super) const PRESENCE_INTERVAL: Duration = Duration::from_secs(30);

/// Most events told one by one after one change. Of more the agent is only told to look again.
pub(super) const MAX_EVENTS: usize = 1000;

/// Largest event, in bytes of its JSON: an agent takes 4 MiB. A larger one goes without the values.
pub(super) const MAX_EVENT_BYTES: usize = 3 * 1024 * 1024;

/// Most lines of log at once that one guest causes, and the time after which there can be one more. A
/// guest that is started has two, and whoever looks for what went wrong finds how often.
pub(super) const LOG_BURST: u32 = 4;
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Time for a socket to be made, and for each one to be tried before the others are served: the
/// directory of a guest's monitor may be on a file system that does not answer.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const FIRST_TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a stop waits for connections to end before it cuts them off.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(3);
