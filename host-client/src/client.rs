//! `Client`: one method per resource of an agent.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use http::Method;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::TaskTracker;

use crate::{
    connect::{Connector, DEFAULT_CONNECT_TIMEOUT},
    endpoint::Endpoint,
    error::ClientError,
    exec::Exec,
    http::{ANSWER_TIMEOUT, Call, Http, metadata},
    operation,
    protocol::{
        event::{DEFAULT_KINDS, Event, NewEvent},
        host::HostConnection,
        operation::{Operation, OperationId},
        path,
        server_info::ServerInfo,
        sftp::SessionOptions,
        version::{Family, INCUS_SERVER_NAME},
    },
    sftp::{RawSftp, Sftp},
    tls::Security,
    ws::{self, Socket},
};

/// Shortest silence that means something: guests under emulation are slow.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// How long an agent may take to cancel an operation.
const CANCEL_PATIENCE: Duration = Duration::from_secs(30);

/// An agent, as seen from its host.
///
/// Making one does nothing yet: each method connects when it needs to, and tries again while the
/// machine boots. Cheap to clone; clones share their connections.
///
/// Dropping the last clone closes the idle connection. What was started goes on.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: Http,
    timeouts: Timeouts,
    info: Mutex<Option<Arc<ServerInfo>>>,
    /// What goes on after its caller has left.
    background: TaskTracker,
}

/// How long an agent is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// How long a connection is tried for: 30 s unless told otherwise.
    pub connect: Duration,
    /// How long an agent may be silent when it owes something: an answer, the next of its words
    /// while a command runs, the reply to a request for a file. Then it is
    /// [`Silent`](ClientError::Silent), or the command
    /// [`ConnectionLost`](ClientError::ConnectionLost).
    ///
    /// `None` is 30 s for answers, 45 s for commands, and 300 s for files, because writing to a
    /// slow disk is silence too. Less than a second is taken as a second.
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

    /// The silence that ends something that usually waits for `usual`.
    pub(crate) fn silence_or(self, usual: Duration) -> Duration {
        self.silence
            .map_or(usual, |silence| silence.max(MIN_SILENCE))
    }
}

impl Client {
    /// An agent at `endpoint`. A connection is tried for 30 s.
    #[must_use]
    pub fn new(endpoint: Endpoint, security: Security) -> Self {
        Self::with_connect_timeout(endpoint, security, DEFAULT_CONNECT_TIMEOUT)
    }

    /// An agent at `endpoint`. A connection is tried for `timeout`.
    #[must_use]
    pub fn with_connect_timeout(endpoint: Endpoint, security: Security, timeout: Duration) -> Self {
        Self::with_timeouts(
            endpoint,
            security,
            Timeouts::default().with_connect(timeout),
        )
    }

    /// An agent at `endpoint`, waited for as `timeouts` says.
    #[must_use]
    pub fn with_timeouts(endpoint: Endpoint, security: Security, timeouts: Timeouts) -> Self {
        let connector = Connector::new(endpoint, security, timeouts.connect);
        Self::over(connector, timeouts)
    }

    /// As [`Client::with_connect_timeout`], but nothing is logged of a guest that is waited for.
    #[must_use]
    pub fn quiet(endpoint: Endpoint, security: Security, timeout: Duration) -> Self {
        let connector = Connector::new(endpoint, security, timeout).quiet();
        Self::over(connector, Timeouts::default().with_connect(timeout))
    }

    fn over(connector: Connector, timeouts: Timeouts) -> Self {
        Self {
            inner: Arc::new(Inner {
                http: Http::new(connector, timeouts.silence_or(ANSWER_TIMEOUT)),
                timeouts,
                info: Mutex::new(None),
                background: TaskTracker::new(),
            }),
        }
    }

    /// Where the agent is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.http().connector().endpoint()
    }

    /// What the agent is and can do.
    ///
    /// # Errors
    ///
    /// [`ClientError`], as for every method: it cannot be reached, it refuses, it does not answer.
    pub async fn server_info(&self) -> Result<ServerInfo, ClientError> {
        let call = Call::get(path::SERVER, "asking what the agent is");
        let info: ServerInfo = metadata(self.http().call(call).await?, "the description")?;
        *self.info() = Some(Arc::new(info.clone()));
        Ok(info)
    }

    /// Asks once what the agent is, without trying again.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn probe(&self) -> Result<ServerInfo, ClientError> {
        let call = Call::get(path::SERVER, "asking what the agent is");
        metadata(self.http().call_impatiently(call).await?, "the description")
    }

    /// Tells the agent where its host listens, in the words of the agent's family.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when that makes no sense to it; LXD's agents say so too when they
    /// cannot reach the host there. Or another [`ClientError`].
    pub async fn tell_host(&self, host: &HostConnection) -> Result<(), ClientError> {
        let family = match &self.known_info().await?.environment.server[..] {
            INCUS_SERVER_NAME => Family::Incus,
            _ => Family::Lxd,
        };
        let call = Call {
            method: Method::PUT,
            body: Some(host.to_json(family).to_string().into_bytes()),
            ..Call::get(path::SERVER, "telling where the host is")
        };
        self.http().call(call).await.map(drop)
    }

    /// Has the agent tell an event to everybody who listens in the guest.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn send_event(&self, event: &NewEvent) -> Result<(), ClientError> {
        let body = serde_json::to_vec(event)
            .map_err(|error| ClientError::protocol_because("an event is no JSON", error))?;
        let call = Call {
            method: Method::POST,
            body: Some(body),
            ..Call::get(path::EVENTS, "telling an event")
        };
        self.http().call(call).await.map(drop)
    }

    /// What the agent said last of itself; asks if it has not yet.
    pub(crate) async fn known_info(&self) -> Result<Arc<ServerInfo>, ClientError> {
        let known = self.info().clone();
        match known {
            Some(info) => Ok(info),
            None => self.server_info().await.map(Arc::new),
        }
    }

    /// The agent's live operations, and those that ended lately.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        let path = format!("{}?recursion=1", path::OPERATIONS);
        let call = Call::get(path, "listing operations");
        operation::flatten(self.http().call(call).await?.metadata)
    }

    /// One operation.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when the agent does not know it: status 404, or 500 from LXD's
    /// agents; or another [`ClientError`].
    pub async fn operation(&self, id: OperationId) -> Result<Operation, ClientError> {
        let call = Call::get(path::operation(id), "asking for an operation");
        metadata(self.http().call(call).await?, "the operation")
    }

    /// Waits for the end of an operation, at most `seconds`, or for ever.
    ///
    /// The operation that comes back need not have ended: see [`Operation::is_final`].
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when the agent does not know it. LXD's agents say this also when the
    /// operation failed and when the time is over, and version 5.0.2 cannot wait at all.
    pub async fn wait_operation(
        &self,
        id: OperationId,
        seconds: Option<u32>,
    ) -> Result<Operation, ClientError> {
        let patience = seconds.map_or(Duration::MAX / 2, |s| Duration::from_secs(s.into()));
        let path = path::operation_wait(id, seconds);
        let call = Call::get(path, "waiting for an operation").patiently(patience);
        metadata(self.http().call(call).await?, "the operation")
    }

    /// Cancels an operation.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when it cannot be cancelled: LXD's agents never cancel a command.
    pub async fn cancel_operation(&self, id: OperationId) -> Result<(), ClientError> {
        let call = Call {
            method: Method::DELETE,
            ..Call::get(path::operation(id), "cancelling an operation")
        };
        self.http().call(call.patiently(CANCEL_PATIENCE)).await?;
        Ok(())
    }

    /// A command to run: `program` with `arguments`.
    pub fn exec<A>(
        &self,
        program: impl Into<String>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Exec
    where
        A: Into<String>,
    {
        Exec::new(self.clone(), program.into(), arguments)
    }

    /// Starts a file session.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn sftp(&self) -> Result<Sftp, ClientError> {
        self.sftp_with(&SessionOptions::default()).await
    }

    /// Starts a file session as a user, below a directory, or for reading only.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] when the agent does not say that it keeps to `options`;
    /// [`ClientError::Agent`] when it refuses them, or another [`ClientError`].
    pub async fn sftp_with(&self, options: &SessionOptions) -> Result<Sftp, ClientError> {
        let stream = self.open_sftp(options).await?;
        Sftp::start_upgraded(stream, self.timeouts())
            .await?
            .confirm(options)
    }

    /// A connection that speaks SFTP, for a caller that has its own SFTP client.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn raw_sftp(&self) -> Result<RawSftp, ClientError> {
        self.open_sftp(&SessionOptions::default())
            .await
            .map(RawSftp::new)
    }

    async fn open_sftp(
        &self,
        options: &SessionOptions,
    ) -> Result<crate::connect::Upgraded, ClientError> {
        let path = if options.is_default() {
            path::SFTP.to_owned()
        } else {
            format!("{}?{}", path::SFTP, options.to_query())
        };
        let (stream, _) = self
            .http()
            .upgrade(&path, "sftp", &[], "starting SFTP")
            .await?;
        Ok(stream)
    }

    /// Events of the given kinds from now on; with no kinds, of every kind the agent offers.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`io::ErrorKind::InvalidInput`] for a kind that is none of
    /// [`DEFAULT_KINDS`]: nothing would ever come of it. Or
    /// another [`ClientError`].
    pub async fn events(&self, kinds: &[&str]) -> Result<Events, ClientError> {
        if let Some(kind) = kinds.iter().find(|kind| !DEFAULT_KINDS.contains(kind)) {
            let reason = format!("there are no events of the kind {kind:?}");
            return Err(ClientError::Local {
                action: "listen for events",
                source: io::Error::new(io::ErrorKind::InvalidInput, reason),
            });
        }
        self.any_events(kinds).await
    }

    /// As [`Client::events`], also of kinds that do not exist. The stream of such events is a sign of
    /// the agent's presence: it ends with the agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    #[doc(hidden)]
    pub async fn any_events(&self, kinds: &[&str]) -> Result<Events, ClientError> {
        let socket = self.event_socket(kinds).await?;
        Ok(Events { socket: Ok(socket) })
    }

    pub(crate) async fn event_socket(&self, kinds: &[&str]) -> Result<Socket, ClientError> {
        let path = match kinds {
            [] => path::EVENTS.to_owned(),
            kinds => format!("{}?type={}", path::EVENTS, kinds.join(",")),
        };
        ws::open(self.http(), &path, ws::SMALL_BUFFER_BYTES, LISTENING).await
    }

    /// Waits until nothing is half done that must not be abandoned: a handshake with the monitor
    /// of a virtual machine, the end of a command whose start was given up. Worth a moment before a
    /// process ends, after an error to connect.
    pub async fn settle(&self) {
        let background = self.background();
        background.close();
        background.wait().await;
        background.reopen();
        self.http().connector().settle().await;
    }

    pub(crate) fn background(&self) -> &TaskTracker {
        &self.inner.background
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.inner.timeouts
    }

    pub(crate) fn http(&self) -> &Http {
        &self.inner.http
    }

    fn info(&self) -> std::sync::MutexGuard<'_, Option<Arc<ServerInfo>>> {
        self.inner
            .info
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events as they happen. Dropping it ends the listening.
#[derive(Debug)]
pub struct Events {
    /// Until the agent ended the stream, or it was lost.
    socket: Result<Socket, Ended>,
}

/// How the events ended. Said again to whoever still asks.
#[derive(Debug, Clone)]
enum Ended {
    ByAgent,
    Lost(String),
}

impl Ended {
    fn outcome(&self) -> Result<Option<Event>, ClientError> {
        match self {
            Self::ByAgent => Ok(None),
            Self::Lost(reason) => Err(ClientError::lost(LISTENING, reason.clone())),
        }
    }
}

/// What is going on, for errors.
const LISTENING: &str = "listening for events";

impl Events {
    /// The next event; `None` when the agent ended the stream. Nothing is lost if this is dropped.
    /// What was said of the end is said again when this is called again.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`] when the connection ended, and the agent did not say so: events
    /// may be missing. [`ClientError::Protocol`] for what is no event; the next may be one.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            let socket = match &mut self.socket {
                Ok(socket) => socket,
                Err(ended) => return ended.outcome(),
            };
            let ended = match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(text.as_str())
                        .map(Some)
                        .map_err(|error| {
                            ClientError::protocol_because(
                                "an event is not what it should be",
                                error,
                            )
                        });
                }
                Some(Ok(Message::Close(_))) => Ended::ByAgent,
                Some(Ok(_)) => continue,
                Some(Err(error)) => Ended::Lost(error.to_string()),
                None => Ended::Lost("the connection closed".to_owned()),
            };
            self.socket = Err(ended);
        }
    }
}
