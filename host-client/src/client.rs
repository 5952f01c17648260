//! `Client`: one method per resource of an agent.

use std::{io, sync::Arc, time::Duration};

use http::Method;

use crate::{
    agent::Agent,
    connect::{AgentStream, Connector},
    endpoint::Endpoint,
    error::ClientError,
    events::Events,
    exec::Exec,
    http::{Call, Http, metadata},
    operation,
    protocol::{
        event::{DEFAULT_KINDS, NewEvent},
        host::HostConnection,
        operation::{Operation, OperationId},
        path,
        server_info::ServerInfo,
        sftp::SessionOptions,
        version::{Family, INCUS_SERVER_NAME},
    },
    sftp::{self, Sftp},
    timeouts::Timeouts,
    tls::Security,
};

/// A kind of events that no agent sends.
const NO_EVENTS: &str = "vsock-agent-host-presence";

/// A client of one agent.
///
/// Creating one does not connect: each method connects when it needs to, and tries again while the
/// machine boots. Cheap to clone; clones share their connections.
///
/// Dropping the last clone closes the idle connection. Sessions and commands go on.
///
/// # Cancel safety
///
/// The future of each method can be dropped. The agent may or may not have received the request then. A
/// `CONNECT` handshake with a virtual machine monitor goes on in the background: see
/// [`Client::settle`].
#[derive(Debug, Clone)]
pub struct Client {
    agent: Arc<Agent>,
}

impl Client {
    /// A client of the agent at `endpoint`, with the default time limits.
    #[must_use]
    pub fn new(endpoint: Endpoint, security: Security) -> Self {
        Self::with_timeouts(endpoint, security, Timeouts::default())
    }

    /// A client of the agent at `endpoint`, with these time limits.
    #[must_use]
    pub fn with_timeouts(endpoint: Endpoint, security: Security, timeouts: Timeouts) -> Self {
        let connector = Connector::new(endpoint, security, timeouts.connect);
        Self::over(connector, timeouts)
    }

    /// As [`Client::with_timeouts`], for a daemon: logs no warning while it waits for a guest.
    #[must_use]
    pub fn for_daemon(endpoint: Endpoint, security: Security, timeouts: Timeouts) -> Self {
        let connector = Connector::new(endpoint, security, timeouts.connect).for_daemon();
        Self::over(connector, timeouts)
    }

    fn over(connector: Connector, timeouts: Timeouts) -> Self {
        Self {
            agent: Arc::new(Agent::new(connector, timeouts)),
        }
    }

    /// The endpoint of the agent.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.http().connector().endpoint()
    }

    /// The agent's version and API extensions (`GET /1.0`).
    ///
    /// # Errors
    ///
    /// As of every method, [`ClientError::Connect`], [`ClientError::IdentityRefused`],
    /// [`ClientError::Agent`], [`ClientError::ConnectionLost`], [`ClientError::Silent`] or
    /// [`ClientError::Protocol`].
    pub async fn server_info(&self) -> Result<ServerInfo, ClientError> {
        self.agent.server_info().await
    }

    /// As [`Client::server_info`], with a single attempt to connect.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn probe(&self) -> Result<ServerInfo, ClientError> {
        let call = Call::get(path::SERVER, "asking what the agent is");
        metadata(self.http().call_once(call).await?, "the description")
    }

    /// Sends the agent the address of its host (`PUT /1.0`), with the field names of LXD or Incus.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] if the agent refuses it; LXD's agent also does if it cannot connect to
    /// that address. Or another [`ClientError`].
    pub async fn set_host(&self, host: &HostConnection) -> Result<(), ClientError> {
        let flavour = match &self.agent.known_info().await?.environment.server[..] {
            INCUS_SERVER_NAME => Family::Incus,
            _ => Family::Lxd,
        };
        let body = host.to_json(flavour).to_string().into_bytes();
        let call = Call::change(Method::PUT, path::SERVER, body, "telling where the host is");
        self.http().call(call).await.map(drop)
    }

    /// Sends an event to all listeners in the guest (`POST /1.0/events`).
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn send_event(&self, event: &NewEvent) -> Result<(), ClientError> {
        let body = serde_json::to_vec(event)
            .map_err(|error| ClientError::protocol_because("an event is no JSON", error))?;
        let call = Call::change(Method::POST, path::EVENTS, body, "telling an event");
        self.http().call(call).await.map(drop)
    }

    /// The agent's running operations, and those that ended recently.
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

    /// Waits for the end of an operation, at most `limit`, which is rounded up to whole seconds, or for
    /// ever.
    ///
    /// The operation that comes back need not have ended: see [`Operation::is_final`].
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when the agent does not know it. LXD's agent also returns this when
    /// the operation failed and after `limit`; version 5.0.2 does not support waiting.
    pub async fn wait_operation(
        &self,
        id: OperationId,
        limit: Option<Duration>,
    ) -> Result<Operation, ClientError> {
        let call = Call::get(path::operation_wait(id, limit), "waiting for an operation");
        let call = call.with_extra_time(limit.unwrap_or(Duration::MAX / 2));
        metadata(self.http().call(call).await?, "the operation")
    }

    /// Cancels an operation.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when it cannot be cancelled: LXD's agent cannot cancel a command.
    pub async fn cancel_operation(&self, id: OperationId) -> Result<(), ClientError> {
        self.agent.cancel_operation(id).await
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
        Exec::new(Arc::clone(&self.agent), program.into(), arguments)
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
    /// [`ClientError::Unsupported`] when the agent does not confirm that it applies `options`;
    /// [`ClientError::Agent`] when it refuses them, or another [`ClientError`].
    pub async fn sftp_with(&self, options: &SessionOptions) -> Result<Sftp, ClientError> {
        let stream = self.open_sftp(options).await?;
        let silence = self.agent.timeouts.silence_or(sftp::SILENCE_TIMEOUT);
        Sftp::start(stream, silence).await?.confirm(options)
    }

    /// A connection that speaks SFTP, for a caller that has its own SFTP client.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn raw_sftp(&self) -> Result<AgentStream, ClientError> {
        self.open_sftp(&SessionOptions::default()).await
    }

    async fn open_sftp(&self, options: &SessionOptions) -> Result<AgentStream, ClientError> {
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

    /// Events of the given kinds from now on; without kinds, of all kinds of the agent.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`io::ErrorKind::InvalidInput`] for a kind that is not one of
    /// [`DEFAULT_KINDS`], of which there are no events. Or another [`ClientError`].
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

    /// A stream without events, which shows that the agent is running: it ends with the agent.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn presence(&self) -> Result<Events, ClientError> {
        self.any_events(&[NO_EVENTS]).await
    }

    async fn any_events(&self, kinds: &[&str]) -> Result<Events, ClientError> {
        let socket = self.agent.event_socket(kinds).await?;
        Ok(Events::new(socket))
    }

    /// Waits for background work that must not be aborted: a handshake with a virtual machine monitor,
    /// and ending a command whose start was cancelled. Call it before the process ends, after a failed
    /// connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the work goes on when the future is dropped.
    pub async fn settle(&self) {
        let background = &self.agent.background;
        background.close();
        background.wait().await;
        background.reopen();
        self.http().connector().settle().await;
    }

    fn http(&self) -> &Http {
        &self.agent.http
    }
}
