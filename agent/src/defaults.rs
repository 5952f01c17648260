//! Every number of the agent, with its unit and its reason.

use std::time::Duration;

use vsock_agent_protocol::guest_api;
use vsock_agent_transport::Limits;

/// Longest queue of connections not yet accepted. The kernel caps it at `net.core.somaxconn`
/// (4096 since Linux 5.4) and resets connections above it, which a client cannot distinguish from a port
/// without a listener; a thousand commands at once open five sockets each.
pub(crate) const BACKLOG: i32 = 4096;

/// Time for the host to accept a connection: the kernel's own limit (`VSOCK_DEFAULT_CONNECT_TIMEOUT`).
pub(crate) const VSOCK_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Most connections at once that speak HTTP. One that became a websocket or SFTP counts with its
/// command, its listener or its session.
pub(crate) const MAX_CONNECTIONS: usize = 8192;

/// Time for a peer to start the TLS handshake, and again to finish it. Under software emulation one
/// costs some 50 ms, and [`Limits::UNVERIFIED`] limits how many share the cores.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for the head of a request to arrive, idle keep-alive connections included.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two pieces of a request's body.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for the whole body: [`MAX_BODY_BYTES`] in it are 70 kB a second.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Largest body of a request, in bytes: a command line of `ARG_MAX` written as JSON fits.
pub(crate) const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// Pause between two attempts to bind while the vsock device or its module is missing.
pub(crate) const BIND_PAUSE: Duration = Duration::from_millis(500);

/// Time to wait for the vsock device at the start. A boot may be waiting for the agent; systemd restarts
/// it.
pub(crate) const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to load a kernel module.
pub(crate) const MODULE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a connection to switch protocols after a 101 reply.
pub(crate) const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time from the creation of a command to the joining of its last socket. LXD's agent waits 5 s, too short
/// for a VM under software emulation.
pub(crate) const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the state of an ended operation can be read. LXD's agent keeps it 5 s, too short for a client
/// that reconnects to get the exit status.
pub(crate) const RETENTION: Duration = Duration::from_secs(600);

/// Most ended operations kept. One is some 400 bytes of JSON, so this is about a megabyte.
pub(crate) const MAX_ENDED_OPERATIONS: usize = 2_000;

/// Largest JSON of one of them, in bytes. Only the command of an operation that was never started makes it
/// larger, and that is left out: all together take 16 MB at most.
pub(crate) const MAX_ENDED_BYTES: usize = 8 * 1024;

/// Longest command that an operation shows, in bytes. Of a longer one it shows the program alone:
/// lists and events have it too, and each of them would be as large as the largest request.
pub(crate) const MAX_SHOWN_COMMAND_BYTES: usize = 16 * 1024;

/// Most commands at once.
pub(crate) const MAX_SESSIONS: usize = 4096;

/// Most commands between `fork` and `exec` at once, slow ones not counted.
pub(crate) const MAX_SPAWNS: usize = 32;

/// How long a command counts among [`MAX_SPAWNS`]. A program on a disk starts in milliseconds; one on
/// a file system that does not answer must not keep others from starting.
pub(crate) const SPAWN_TIMEOUT: Duration = Duration::from_millis(250);

/// Quiet time on an output stream after the command's end, when something it left behind still
/// holds the stream, after which the stream ends.
pub(crate) const DRAIN_QUIET: Duration = Duration::from_secs(1);

/// Longest time an output stream goes on after the command's end.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may read nothing of the output of an ended command before the rest is dropped. Of a
/// Unix socket three quarters of its buffer must be free before more can be sent
/// (`unix_writable` in Linux's `net/unix/af_unix.c`): a client that reads 3 KB a second loses nothing.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between the signals that end a command, unless its request sets it.
pub(crate) const KILL_PAUSE: Duration = Duration::from_secs(5);

/// Largest piece of output in one message, in bytes: half a pipe's default capacity (`pipe(7)`).
/// A stream that has sent one keeps a buffer of that size, and a thousand commands at once must be
/// able to afford it.
pub(crate) const MAX_OUTPUT_BYTES: usize = 32 * 1024;

/// Largest message a client may send on a control or events websocket, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Read buffer of a control or events websocket, in bytes.
pub(crate) const WS_SMALL_READ_BUFFER_BYTES: usize = 1024;

/// Read buffer of a websocket with a command's input, in bytes: a thousand commands at once must be
/// able to afford it.
pub(crate) const WS_READ_BUFFER_BYTES: usize = 16 * 1024;

/// How long a stream's socket stays open for its client to close it, after its last byte. Some
/// VMMs drop what they still buffer when the guest closes first.
pub(crate) const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// Most listeners to events at once. A host has one for each command it runs.
pub(crate) const MAX_LISTENERS: usize = MAX_SESSIONS;

/// Memory of the events that some listener has yet to receive, in bytes; all listeners share them. The
/// events of some ten thousand commands fit, far more than can run at once.
pub(crate) const MAX_EVENT_LOG_BYTES: usize = 16 * 1024 * 1024;

/// Time between two pings on an events websocket.
pub(crate) const EVENT_PING: Duration = Duration::from_secs(10);

/// Time to send one event before its listener is dropped: three intervals of pings. A client that starts
/// hundreds of commands at once may read nothing until they run, and the waiting events take no memory of
/// their own ([`MAX_EVENT_LOG_BYTES`]).
pub(crate) const EVENT_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that an event about a device is delayed until the change is applied. Hosts wait 3 s for a reply.
pub(crate) const HOTPLUG_TIMEOUT: Duration = Duration::from_secs(2);

/// Time to open the directory that an SFTP session starts in. A disk that wakes up takes some seconds.
pub(crate) const SFTP_START_TIMEOUT: Duration = Duration::from_secs(10);

/// Most SFTP sessions at once.
pub(crate) const MAX_SFTP_SESSIONS: usize = 256;

/// Most open handles in one SFTP session.
pub(crate) const MAX_SFTP_HANDLES: usize = 1000;

/// Most requests of one SFTP session that are processed at once, each by a thread. More than one is needed
/// only while files are slow, and each may hold two frames.
pub(crate) const MAX_SFTP_WORKERS: usize = 8;

/// Most of them for one handle: a device that hangs leaves threads for the others.
pub(crate) const MAX_SFTP_WORKERS_OF_HANDLE: usize = 4;

/// Most requests of one SFTP session that wait for others: what OpenSSH's client has in flight.
pub(crate) const MAX_SFTP_WAITING: usize = 64;

/// Size of those, in bytes, at which a session reads no more: four of the largest frames.
pub(crate) const MAX_SFTP_SESSION_WAITING_BYTES: usize = 1024 * 1024;

/// The same for all sessions together, so that many slow ones do not cost the guest its memory.
pub(crate) const MAX_SFTP_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// Most connections to TCP ports of the guest at once.
pub(crate) const MAX_PORT_FORWARDS: usize = 1024;

/// Buffer of such a connection in each direction, in bytes: a TLS record. All of them together
/// must be affordable.
pub(crate) const FORWARD_BUFFER_BYTES: usize = 16 * 1024;

/// Time for a TCP port of the guest to answer. It is mostly on the loopback.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for `statfs(2)` on network file systems. LXD's hosts wait 3 s for all metrics together.
pub(crate) const STATFS_TIMEOUT: Duration = Duration::from_secs(1);

/// Most pending calls of `statfs(2)` at once: each holds a thread.
pub(crate) const MAX_STATFS: usize = 8;

/// Time to connect to the host, TLS included.
pub(crate) const HOST_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the host to answer, and between two pieces of its answer.
pub(crate) const HOST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer of the host, in bytes.
pub(crate) const MAX_HOST_ANSWER_BYTES: usize = guest_api::MAX_ANSWER_BYTES;

/// Time to fetch the instance data. From LXD's and Incus's hosts, a thousand keys take a thousand requests:
/// 21 s in an emulated guest (November 2026).
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// First pause after a failed fetch; the next is twice as long. A host may announce its address before it
/// listens. Also the time in which changes are collected.
pub(crate) const FETCH_PAUSE: Duration = Duration::from_millis(50);

/// Longest such pause.
pub(crate) const MAX_FETCH_PAUSE: Duration = Duration::from_secs(5);

/// Time to report the guest's state to the host; a program in the guest waits for it.
pub(crate) const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Most connections at once from programs in the guest.
pub(crate) const MAX_GUEST_CONNECTIONS: usize = 128;

/// Connections to a metadata service.
pub(crate) const METADATA: Limits = Limits {
    slots: MAX_GUEST_CONNECTIONS,
    reserved: 0,
    queue: 1024,
};

/// Time of such a connection before it may be closed for a newer one. Replies take milliseconds: the client
/// of an older connection sends no request, or does not read.
pub(crate) const METADATA_GRACE: Duration = Duration::from_millis(50);

/// Most listeners to events at once in the guest.
pub(crate) const MAX_GUEST_LISTENERS: usize = 32;

/// Most reports at once on their way to the host.
pub(crate) const MAX_REPORTS: usize = 4;

/// Largest body of a request from a program in the guest, in bytes.
pub(crate) const MAX_GUEST_BODY_BYTES: usize = 4 * 1024;

/// Most requests at once that are passed to the host, waits and files included.
pub(crate) const MAX_FORWARDS: usize = 32;

/// Largest body of a request that is passed to the host, in bytes: a volume's configuration has a few
/// thousand.
pub(crate) const MAX_FORWARD_BODY_BYTES: usize = 64 * 1024;

/// Largest reply of the host to such a request, in bytes: some thousand volumes. A file has no limit, and is
/// streamed.
pub(crate) const MAX_FORWARD_ANSWER_BYTES: usize = 1024 * 1024;

/// Time for such a request, from its first byte to the complete reply: less than
/// [`GUEST_CONNECTION_TIMEOUT`], so that the program gets an error.
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(45);

/// Time for the requests that take longer, which are a wait for an operation and a file.
pub(crate) const LONG_FORWARD_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Longest connection of a program in the guest, unless it listens to events or waits for the host
/// ([`LONG_FORWARD_TIMEOUT`]), so that a program that does not read does not hold a permit.
pub(crate) const GUEST_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause before a metadata service tries again to get an address or port that is in use.
pub(crate) const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// Time for a host to answer at its default address, before the boot continues without one: it takes 0.7 s
/// in an emulated guest on a busy computer, TLS included (November 2026). Without a listener, a connection
/// fails at once.
pub(crate) const HOST_PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time to fetch the instance data before those of an earlier boot are served: half of [`READY_TIMEOUT`], so
/// that cloud-init finds them in time.
pub(crate) const SAVED_DATA_DELAY: Duration = Duration::from_secs(5);

/// How long the boot waits for the instance data when they are expected.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for one program that has cloud-init detect its datasource again. Reloading systemd takes some 6 s
/// under software emulation.
pub(crate) const CLOUD_INIT_PROGRAM_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for all of them, after which the boot continues.
pub(crate) const PROVISION_TIMEOUT: Duration = Duration::from_secs(40);

/// Longest uptime at which the agent may reboot the machine for cloud-init. A boot takes a minute under
/// software emulation.
pub(crate) const MAX_REBOOT_UPTIME: Duration = Duration::from_secs(300);

/// Interval of checks whether such a program has ended.
pub(crate) const CLOUD_INIT_PROGRAM_POLL: Duration = Duration::from_millis(20);

/// How long a shutdown waits for sessions to end before it aborts them.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
