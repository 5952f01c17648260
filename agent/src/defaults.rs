//! Limits and time limits of the agent, with reasons.

use std::time::Duration;

use vsock_agent_transport::Limits;

/// Backlog of `listen(2)`. The kernel caps it at `net.core.somaxconn` (4096 since Linux 5.4) and resets
/// further connections, as on a port without a listener. A thousand simultaneous commands open five sockets
/// each.
pub(crate) const BACKLOG: i32 = 4096;

/// Time limit of a vsock connection to the host: the kernel's default (`VSOCK_DEFAULT_CONNECT_TIMEOUT`).
pub(crate) const VSOCK_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum number of HTTP connections. Upgraded ones are limited by their commands, listeners and sessions.
pub(crate) const MAX_CONNECTIONS: usize = 8192;

/// Time for a peer to start the TLS handshake, and again to finish it. Under software emulation one takes
/// 50 ms of CPU time, shared by those of [`Limits::UNVERIFIED`].
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Time to receive the head of a request, and to keep an idle connection.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two frames of a request's body.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to receive a request's body: 70 kB a second for [`MAX_BODY_BYTES`].
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Maximum size of a request's body, in bytes. A command line of `ARG_MAX` in JSON fits.
pub(crate) const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// Pause between attempts to bind while the vsock device or its module is missing.
pub(crate) const BIND_PAUSE: Duration = Duration::from_millis(500);

/// Time to wait for the vsock device at the start. The boot may be waiting for the agent, and systemd
/// restarts it.
pub(crate) const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to load a kernel module.
pub(crate) const MODULE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time to upgrade a connection after a 101 reply.
pub(crate) const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to connect all websockets of a command. LXD's agent waits 5 s, too short under software emulation.
pub(crate) const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that an ended operation is kept. LXD's agent keeps it 5 s, too short for a client that reconnects for
/// the exit status.
pub(crate) const RETENTION: Duration = Duration::from_secs(600);

/// Maximum number of ended operations that are kept, about 400 bytes each.
pub(crate) const MAX_ENDED_OPERATIONS: usize = 2_000;

/// Maximum size of an ended operation in JSON, in bytes. Above it, which only the command of one that never
/// started causes, the metadata are dropped. All together take 16 MB at most.
pub(crate) const MAX_ENDED_BYTES: usize = 8 * 1024;

/// Maximum size of the command in an operation's metadata, in bytes. Of a longer one only the program is
/// shown: lists and events contain it, too.
pub(crate) const MAX_SHOWN_COMMAND_BYTES: usize = 16 * 1024;

/// Maximum number of running commands.
pub(crate) const MAX_SESSIONS: usize = 4096;

/// Maximum number of commands between `fork` and `exec`, without those above [`SPAWN_TIMEOUT`].
pub(crate) const MAX_SPAWNS: usize = 32;

/// Time that a command counts in [`MAX_SPAWNS`]. A program on a disk starts in milliseconds; one on a file
/// system that does not respond must not delay others.
pub(crate) const SPAWN_TIMEOUT: Duration = Duration::from_millis(250);

/// Time without output after the command's exit until an output stream ends that a background process holds
/// open.
pub(crate) const DRAIN_QUIET: Duration = Duration::from_secs(1);

/// Maximum time of an output stream after the command's exit.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without progress after which the output of an exited command is dropped. A Unix socket is writable
/// when three quarters of its buffer are free (`unix_writable` in `net/unix/af_unix.c`), so a client that
/// reads 3 KB a second loses nothing.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Default time between the signals that end a command.
pub(crate) const KILL_PAUSE: Duration = Duration::from_secs(5);

/// Maximum size of an output message, in bytes: half a pipe's default capacity (`pipe(7)`). Each stream keeps
/// a buffer of this size, and there may be a thousand commands.
pub(crate) const MAX_OUTPUT_BYTES: usize = 32 * 1024;

/// Maximum size of a message from a client on a control or events websocket, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Size of the read buffer of a control or events websocket, in bytes.
pub(crate) const WS_SMALL_READ_BUFFER_BYTES: usize = 1024;

/// Size of the read buffer of a websocket with a command's input, in bytes. There may be a thousand commands.
pub(crate) const WS_READ_BUFFER_BYTES: usize = 16 * 1024;

/// Time for a client to close a stream's socket after the last byte. Some VMMs drop buffered data if the
/// guest closes first.
pub(crate) const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of event listeners. A host has one for each command.
pub(crate) const MAX_LISTENERS: usize = MAX_SESSIONS;

/// Maximum memory of the event log, which all listeners share, in bytes. The events of ten thousand commands
/// fit.
pub(crate) const MAX_EVENT_LOG_BYTES: usize = 16 * 1024 * 1024;

/// Interval of pings on an events websocket.
pub(crate) const EVENT_PING: Duration = Duration::from_secs(10);

/// Time to send one event before its listener is dropped: three ping intervals. A client that starts hundreds
/// of commands may not read meanwhile. Waiting events take no memory of their own ([`MAX_EVENT_LOG_BYTES`]).
pub(crate) const EVENT_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum delay of a `device` event until its change is applied. Hosts wait 3 s for a reply.
pub(crate) const HOTPLUG_TIMEOUT: Duration = Duration::from_secs(2);

/// Time to open the directory that an SFTP session starts in. A disk in standby takes seconds.
pub(crate) const SFTP_START_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of SFTP sessions.
pub(crate) const MAX_SFTP_SESSIONS: usize = 256;

/// Maximum number of open handles in an SFTP session.
pub(crate) const MAX_SFTP_HANDLES: usize = 1000;

/// Maximum number of threads of an SFTP session, each for one request. More than one is needed only for slow
/// files. Each may hold two frames.
pub(crate) const MAX_SFTP_WORKERS: usize = 8;

/// Maximum number of these threads for one handle: a hanging device leaves threads for other handles.
pub(crate) const MAX_SFTP_WORKERS_OF_HANDLE: usize = 4;

/// Maximum number of waiting requests in an SFTP session: as many as OpenSSH's client has in flight.
pub(crate) const MAX_SFTP_WAITING: usize = 64;

/// Size of the waiting requests at which a session stops reading, in bytes: four of the largest frames.
pub(crate) const MAX_SFTP_SESSION_WAITING_BYTES: usize = 1024 * 1024;

/// The same for all sessions together.
pub(crate) const MAX_SFTP_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// Maximum number of forwarded connections to TCP ports of the guest.
pub(crate) const MAX_PORT_FORWARDS: usize = 1024;

/// Size of the buffer of a forwarded connection in each direction, in bytes: a TLS record.
pub(crate) const FORWARD_BUFFER_BYTES: usize = 16 * 1024;

/// Time to connect to a TCP port of the guest, usually on the loopback.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit of `statfs(2)` on network file systems. LXD's hosts wait 3 s for the metrics.
pub(crate) const STATFS_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of pending calls of `statfs(2)`, each in a thread.
pub(crate) const MAX_STATFS: usize = 8;

/// Time to connect to the host, TLS included.
pub(crate) const HOST_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a reply of the host, and between two frames of it.
pub(crate) const HOST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time to fetch the instance data. LXD's and Incus's hosts need one request for each key: a thousand take 21
/// s in an emulated guest.
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// First pause after a failed fetch, doubled each time. A host may announce its address before it listens.
/// Also the time in which changes are collected.
pub(crate) const FETCH_PAUSE: Duration = Duration::from_millis(50);

/// Maximum pause after a failed fetch.
pub(crate) const MAX_FETCH_PAUSE: Duration = Duration::from_secs(5);

/// Time to report the guest's state to the host. A program in the guest waits for it.
pub(crate) const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of connections to the guest API, and to each metadata service.
pub(crate) const MAX_GUEST_CONNECTIONS: usize = 128;

/// Limits of connections to a metadata service.
pub(crate) const METADATA: Limits = Limits {
    slots: MAX_GUEST_CONNECTIONS,
    reserved: 0,
    queue: 1024,
};

/// Time before a connection to a metadata service may be closed for a newer one. Replies take milliseconds:
/// an older connection is idle, or its client does not read.
pub(crate) const METADATA_GRACE: Duration = Duration::from_millis(50);

/// Maximum number of event listeners in the guest.
pub(crate) const MAX_GUEST_LISTENERS: usize = 32;

/// Maximum number of pending reports of the guest's state.
pub(crate) const MAX_REPORTS: usize = 4;

/// Maximum size of the body of a request to the guest API, in bytes.
pub(crate) const MAX_GUEST_BODY_BYTES: usize = 4 * 1024;

/// Maximum number of requests that are being forwarded to the host.
pub(crate) const MAX_FORWARDS: usize = 32;

/// Maximum size of the body of a forwarded request, in bytes. A volume's configuration has some thousand.
pub(crate) const MAX_FORWARD_BODY_BYTES: usize = 64 * 1024;

/// Maximum size of the reply to a forwarded request, in bytes: some thousand volumes. Files are streamed
/// without a limit.
pub(crate) const MAX_FORWARD_ANSWER_BYTES: usize = 1024 * 1024;

/// Time limit of a forwarded request and its reply: below [`GUEST_CONNECTION_TIMEOUT`], so that the program
/// gets an error.
pub(crate) const FORWARD_TIMEOUT: Duration = Duration::from_secs(45);

/// Time limit of forwarded waits for an operation and downloads of an image.
pub(crate) const LONG_FORWARD_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Time limit of a connection to the guest API or a metadata service, so that a program that does not read
/// does not hold a permit. Longer for event listeners and [`LONG_FORWARD_TIMEOUT`].
pub(crate) const GUEST_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause before a metadata service retries to bind an address or port that is in use.
pub(crate) const LISTEN_RETRY: Duration = Duration::from_secs(5);

/// Time for a host to reply at its default address. It takes 0.7 s in an emulated guest, TLS included.
/// Without a listener, connecting fails at once.
pub(crate) const HOST_PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time without instance data until the saved ones are served: half of [`READY_TIMEOUT`], so that cloud-init
/// gets them in time.
pub(crate) const SAVED_DATA_DELAY: Duration = Duration::from_secs(5);

/// Default time that the boot waits for expected instance data.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a program that makes cloud-init detect its datasource again. Reloading systemd takes 6 s
/// under software emulation.
pub(crate) const CLOUD_INIT_PROGRAM_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for all of these programs, after which the boot continues.
pub(crate) const PROVISION_TIMEOUT: Duration = Duration::from_secs(40);

/// Maximum uptime at which the machine is rebooted for cloud-init. A boot takes a minute under software
/// emulation.
pub(crate) const MAX_REBOOT_UPTIME: Duration = Duration::from_secs(300);

/// Interval of checks whether such a program has exited.
pub(crate) const CLOUD_INIT_PROGRAM_POLL: Duration = Duration::from_millis(20);

/// Time for sessions to end at the shutdown before they are aborted.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
