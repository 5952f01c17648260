//! Connects to an endpoint: with time limits, repeated attempts while a machine boots, and TLS.
//!
//! Every failure that a booting machine or a busy agent can cause is tried again until the overall
//! deadline. Over virtio there is no "connection refused": a machine whose agent is not up yet and
//! one whose agent is full both reset the connection. A failed TLS handshake is not tried again,
//! it would fail again; only a connection that closed in the middle of one is.

mod hybrid;
mod stream;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{either::Either, task::TaskTracker};
use tracing::{debug, warn};
use vsock_agent_transport::vsock;

use crate::{
    counters::Tally,
    endpoint::Endpoint,
    error::{ClientError, ConnectError},
    tls::{self, Security},
};

pub use self::stream::AgentStream;
pub(crate) use self::stream::Duplex;
use self::stream::Socket;

/// Longest single attempt, TLS handshake included. The kernel's own limit for vsock is 2 s, which
/// a guest under emulation exceeds; the kernel may also never answer a connect at all, so there
/// must be a limit here.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Default time limit for all attempts together.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// First and longest pause between attempts; each is shortened by up to half, at random, so that
/// many clients of one machine do not come back in step.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Longest time for all attempts: a year, which can be added to any point in time.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// After this time without a connection, a warning is logged.
const QUIET_WAIT: Duration = Duration::from_secs(3);

/// The HTTP versions that a connection may have. Only TLS can agree on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, and with TLS HTTP/1.1 if the agent does not speak it.
    Http2,
}

/// Makes connections to one endpoint.
#[derive(Debug)]
pub(crate) struct Connector {
    endpoint: Endpoint,
    security: Security,
    overall_timeout: Duration,
    /// Whether it logs no warning.
    is_quiet: bool,
    /// Whether it tries only once.
    is_single: bool,
    /// `CONNECT` handshakes, which are finished even if the caller is gone.
    handshakes: TaskTracker,
    /// Counts connections and bytes.
    pub(crate) tally: Arc<Tally>,
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, security: Security, overall_timeout: Duration) -> Self {
        Self {
            endpoint,
            security,
            overall_timeout,
            is_quiet: false,
            is_single: false,
            handshakes: TaskTracker::new(),
            tally: Arc::default(),
        }
    }

    /// The same for a daemon: see [`Client::for_daemon`](crate::Client::for_daemon).
    pub(crate) fn for_daemon(self) -> Self {
        Self {
            is_quiet: true,
            ..self
        }
    }

    /// The same, which tries only once.
    #[cfg(feature = "relay")]
    pub(crate) fn once(self) -> Self {
        Self {
            is_single: true,
            ..self
        }
    }

    /// A socket that is connected already, to a process that relays HTTP/2.
    #[cfg(feature = "relay")]
    pub(crate) fn adopt(
        &self,
        socket: std::os::unix::net::UnixStream,
    ) -> std::io::Result<AgentStream> {
        socket.set_nonblocking(true)?;
        let socket = Either::Right(UnixStream::from_std(socket)?);
        let socket = Socket::new(socket, &self.tally);
        Ok(AgentStream::plain(socket, Version::Http2))
    }

    /// Whether a new connection proves that the agent answers, and not only a proxy or monitor before
    /// it. A TLS handshake does.
    pub(crate) const fn is_answered(&self) -> bool {
        matches!(self.security, Security::Tls(_))
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for the end of all `CONNECT` handshakes.
    pub(crate) async fn settle(&self) {
        self.handshakes.close();
        self.handshakes.wait().await;
        self.handshakes.reopen();
    }

    /// Attempts to connect, from now until the overall deadline.
    pub(crate) fn attempts(&self) -> Attempts<'_> {
        self.attempts_within(self.overall_timeout, Version::Http1)
    }

    /// The same, for a connection that may have HTTP/2.
    pub(crate) fn attempts_for_http2(&self) -> Attempts<'_> {
        self.attempts_within(self.overall_timeout, Version::Http2)
    }

    /// The same for `limit`, and for this version.
    pub(crate) fn attempts_within(&self, limit: Duration, version: Version) -> Attempts<'_> {
        let start = Instant::now();
        Attempts {
            connector: self,
            start,
            deadline: start + limit.min(MAX_WAIT),
            last: None,
            pause: PAUSE.0,
            is_logged: self.is_quiet,
            version,
            count: 1,
        }
    }

    /// Connects, trying again until the overall deadline.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`] with the last attempt's error.
    pub(crate) async fn connect(&self) -> Result<AgentStream, ClientError> {
        self.attempts().connect().await
    }

    async fn attempt(&self, version: Version) -> Result<AgentStream, ConnectError> {
        let stream = match &self.endpoint {
            Endpoint::Vsock(address) => Either::Left(
                vsock::connect(*address, ATTEMPT_TIMEOUT)
                    .await
                    .map_err(ConnectError::Io)?,
            ),
            Endpoint::Unix(path) => Either::Right(connect_unix(path).await?),
            Endpoint::Hybrid { path, port } => {
                let stream = connect_unix(path).await?;
                Either::Right(hybrid::connect(stream, *port, &self.handshakes).await?)
            }
        };
        let socket = Socket::new(stream, &self.tally);
        let Security::Tls(identity) = &self.security else {
            return Ok(AgentStream::plain(socket, version));
        };
        let (connector, name) = identity.connector(version);
        let stream = connector
            .connect(name, socket)
            .await
            .map_err(tls::handshake_error)?;
        Ok(AgentStream::tls(stream))
    }

    /// One attempt, for callers that already had a connection and only ask whether the agent is
    /// still there.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`].
    pub(crate) async fn connect_once(&self) -> Result<AgentStream, ClientError> {
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        timeout_at(deadline, self.attempt(Version::Http1))
            .await
            .unwrap_or(Err(ConnectError::TimedOut(ATTEMPT_TIMEOUT)))
            .map_err(|source| ClientError::Connect {
                endpoint: self.endpoint.clone(),
                attempts: 1,
                source,
            })
    }
}

/// Looks up the path on a thread of its own: the monitor's directory may be another user's, or on a file
/// system that does not respond. Fails with `EAGAIN` while the listener's queue is full, which is tried
/// again.
async fn connect_unix(path: &Path) -> Result<UnixStream, ConnectError> {
    vsock_agent_transport::connect(path)
        .await
        .map_err(ConnectError::Io)
}

/// Attempts to reach an agent.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    connector: &'a Connector,
    start: Instant,
    deadline: Instant,
    /// The error of the attempt before.
    last: Option<ConnectError>,
    pause: Duration,
    /// Whether the warning was logged, or is not wanted.
    is_logged: bool,
    version: Version,
    count: u32,
}

impl Attempts<'_> {
    /// Connects, trying again until the deadline.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`] with the last attempt's error.
    pub(crate) async fn connect(&mut self) -> Result<AgentStream, ClientError> {
        loop {
            let limit = ATTEMPT_TIMEOUT.min(self.left());
            let error = match timeout(limit, self.connector.attempt(self.version)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
                Err(_) => self.cut_short(limit),
            };
            self.failed(error).await?;
        }
    }

    /// The time that is left.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The error of an attempt that was ended after `limit`: if that was for the deadline, the error of the
    /// attempt before says more.
    pub(crate) fn cut_short(&mut self, limit: Duration) -> ConnectError {
        let earlier = self.last.take().filter(|_| limit < ATTEMPT_TIMEOUT);
        earlier.unwrap_or(ConnectError::TimedOut(limit))
    }

    /// Waits a moment before the next attempt.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`] with `error` when another attempt cannot help, or there is no time
    /// for one.
    pub(crate) async fn failed(&mut self, error: ConnectError) -> Result<(), ClientError> {
        let (endpoint, attempts) = (&self.connector.endpoint, self.count);
        let wait = jittered(self.pause);
        let is_last = self.connector.is_single || !error.is_retryable();
        if is_last || Instant::now() + wait >= self.deadline {
            return Err(ClientError::Connect {
                endpoint: endpoint.clone(),
                attempts,
                source: error,
            });
        }
        if !self.is_logged && self.start.elapsed() >= QUIET_WAIT {
            self.is_logged = true;
            warn!(%endpoint, %error, "not reachable yet, still trying");
        }
        debug!(%endpoint, attempts, %error, "cannot connect, trying again");
        sleep(wait).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.count += 1;
        self.last = Some(error);
        Ok(())
    }
}

/// Between half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    // A new RandomState has random keys: enough to spread clients, and no dependency.
    let random = RandomState::new().build_hasher().finish();
    let share = u32::try_from(random % 512).unwrap_or(0);
    pause / 2 + pause * share / 1024
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_pause_is_never_longer_than_asked_nor_shorter_than_half() {
        for _ in 0..1000 {
            let pause = jittered(PAUSE.1);
            assert!(pause >= PAUSE.1 / 2 && pause <= PAUSE.1, "{pause:?}");
        }
    }

    #[test]
    fn a_wrong_certificate_is_not_tried_again_and_a_missing_socket_is() {
        assert!(!ConnectError::WrongAgent.is_retryable());
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert!(ConnectError::Io(missing).is_retryable());
        let forbidden = io::Error::from_raw_os_error(libc::EACCES);
        assert!(!ConnectError::Io(forbidden).is_retryable());
    }

    #[tokio::test]
    async fn a_listener_with_a_full_queue_is_tried_until_the_overall_deadline() {
        let path = std::env::temp_dir().join(format!("full-queue-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let mut queue = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => queue.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.raw_os_error(), Some(libc::EAGAIN));
        let endpoint = Endpoint::Unix(path.clone());
        let connector = Connector::new(endpoint, Security::Plain, Duration::from_secs(2));
        let connecting = tokio::time::timeout(Duration::from_secs(60), connector.connect());
        let error = connecting.await.unwrap().unwrap_err();
        std::fs::remove_file(&path).unwrap();
        match error {
            ClientError::Connect {
                attempts,
                source: ConnectError::Io(error),
                ..
            } => {
                assert!(attempts > 3, "{attempts}");
                assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_socket_that_never_appears_is_tried_until_the_overall_deadline() {
        let overall = Duration::from_secs(2);
        let connector = Connector::new(
            Endpoint::Unix("/nonexistent/agent.sock".into()),
            Security::Plain,
            overall,
        );
        let start = Instant::now();
        let error = connector.connect().await.unwrap_err();
        assert!(start.elapsed() >= overall - PAUSE.1);
        match error {
            // Three pauses are less than half of the time.
            ClientError::Connect { attempts, .. } => assert!(attempts > 3, "{attempts}"),
            other => panic!("{other:?}"),
        }
    }
}
