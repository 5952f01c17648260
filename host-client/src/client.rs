//! `Client`: one method per resource of an agent.

use std::{ffi::OsStr, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::timeout;

use crate::{
    agent::Agent,
    connect::{AgentStream, Connector, Version},
    counters::Counters,
    endpoint::Endpoint,
    error::{ClientError, ConnectError},
    events::Events,
    exec::Exec,
    http::{Call, Http, metadata, take_json, take_text},
    operation,
    protocol::{
        event::{DEFAULT_KINDS, NewEvent},
        host::HostConnection,
        metrics::{IncusMetrics, LxdMetrics},
        operation::{Operation, OperationId},
        path,
        port_forward::{self, PortForward},
        server_info::ServerInfo,
        sftp::SessionOptions,
        state::InstanceState,
        version::{self, Family, INCUS_SERVER_NAME},
    },
    reply::{Method, Reply, checked, checked_protocol},
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
/// With an agent that speaks HTTP/2, calls and commands are streams of one connection. It is opened for the
/// first of them, kept by pings, and replaced when it ends; each runtime has its own. A call that changes
/// nothing is made again then. Others, and commands, are sent again only if nothing of them was sent.
///
/// Dropping the last clone, and what it started, closes the idle connection. Sessions and commands go on.
///
/// Several runtimes may use one client. What a method returns, as a session or a stream, is of the runtime on
/// which the method was called, and lives as long as that runs.
///
/// # Cancel safety
///
/// The future of each method can be dropped. The agent may or may not have received the request then. A
/// `CONNECT` handshake with a virtual machine monitor goes on in the background: see
/// [`Client::settle`].
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) agent: Arc<Agent>,
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

    /// As [`Client::with_timeouts`], and speaks LXD's protocol over HTTP/1.1 also to an agent that speaks
    /// HTTP/2.
    #[must_use]
    pub fn over_http1(endpoint: Endpoint, security: Security, timeouts: Timeouts) -> Self {
        let connector = Connector::new(endpoint, security, timeouts.connect);
        Self {
            agent: Arc::new(Agent::new(connector, timeouts).without_http2()),
        }
    }

    fn over(connector: Connector, timeouts: Timeouts) -> Self {
        Self {
            agent: Arc::new(Agent::new(connector, timeouts)),
        }
    }

    /// The endpoint of the agent.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.agent.endpoint()
    }

    /// Counts of what this client and its clones did.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.agent.tally().snapshot()
    }

    /// The agent's version and API extensions (`GET /1.0`).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As of every method, [`ClientError::Connect`], [`ClientError::IdentityRefused`],
    /// [`ClientError::Agent`], [`ClientError::ConnectionLost`], [`ClientError::Silent`] or
    /// [`ClientError::Protocol`].
    pub async fn server_info(&self) -> Result<ServerInfo, ClientError> {
        self.agent
            .run("server_info", async { self.agent.server_info().await })
            .await
    }

    /// As [`Client::server_info`], with a single attempt to connect.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn probe(&self) -> Result<ServerInfo, ClientError> {
        self.agent
            .run("probe", async {
                let call = Call::get(path::SERVER, "asking what the agent is");
                metadata(self.http().call_once(call).await?, "the description")
            })
            .await
    }

    /// Waits until the agent answers, at most for `limit` instead of [`Timeouts::connect`], and returns what
    /// it is. For a machine that was just started: what may end with its boot is tried again.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`] after `limit`, or as soon as waiting cannot help; its
    /// [source](ConnectError) says why the agent did not answer the last time. Other errors are those of an
    /// agent that answers, but not as it should.
    pub async fn wait_ready(&self, limit: Duration) -> Result<ServerInfo, ClientError> {
        self.agent
            .run("wait_ready", async {
                let mut attempts = self
                    .http()
                    .connector()
                    .attempts_within(limit, Version::Http1);
                loop {
                    let stream = attempts.connect().await?;
                    let left = attempts.left();
                    let error = match timeout(left, self.agent.server_info_over(stream)).await {
                        Ok(Ok(info)) => return Ok(info),
                        Ok(Err(error)) => not_ready(error)?,
                        Err(_) => attempts.cut_short(left),
                    };
                    attempts.failed(error).await?;
                }
            })
            .await
    }

    /// The state of the guest: memory, processor time, network and processes (`GET /1.0/state`).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn state(&self) -> Result<InstanceState, ClientError> {
        self.agent
            .run("state", async {
                let call = Call::get(path::STATE, "asking for the state of the guest");
                metadata(self.http().call(call).await?, "the state")
            })
            .await
    }

    /// The metrics of the guest (`GET /1.0/metrics`). Those of Incus's agent come in LXD's form, which is
    /// without the times of its boot and of the answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<LxdMetrics, ClientError> {
        self.agent
            .run("metrics", async {
                let family = self.family().await?;
                let call = Call::get(path::METRICS, "asking for metrics");
                let answer = self.http().call(call).await?;
                match family {
                    Family::Lxd => metadata(answer, "the metrics"),
                    Family::Incus => {
                        metadata::<IncusMetrics>(answer, "the metrics").map(Into::into)
                    }
                }
            })
            .await
    }

    /// The metrics of the guest and of the agent itself, in Prometheus's text format (`GET /metrics`).
    /// The text comes from the guest.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] for the agents of LXD and Incus, or another [`ClientError`].
    pub async fn metrics_text(&self) -> Result<String, ClientError> {
        self.agent
            .run("metrics_text", async {
                self.need(version::METRICS_TEXT, "give metrics as text")
                    .await?;
                let call = Call::get(path::METRICS_TEXT, "asking for metrics");
                let (status, body) = self.http().call_raw(call).await?;
                take_text(status, &body)
            })
            .await
    }

    /// The flavour of the agent.
    async fn family(&self) -> Result<Family, ClientError> {
        Ok(
            match &self.agent.known_info().await?.environment.server[..] {
                INCUS_SERVER_NAME => Family::Incus,
                _ => Family::Lxd,
            },
        )
    }

    /// Checks that the agent has an extension.
    async fn need(&self, extension: &str, what: &'static str) -> Result<(), ClientError> {
        let info = self.agent.known_info().await?;
        let has = info.has(extension);
        has.then_some(())
            .ok_or_else(|| ClientError::unsupported(what))
    }

    /// Sends the agent the address of its host (`PUT /1.0`), with the field names of LXD or Incus.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] if the agent refuses it; LXD's agent also does if it cannot connect to
    /// that address. Or another [`ClientError`].
    pub async fn set_host(&self, host: &HostConnection) -> Result<(), ClientError> {
        self.agent
            .run("set_host", async {
                let body = host.to_json(self.family().await?).to_string().into_bytes();
                let call = Call::change(
                    Method::Put.on_wire(),
                    path::SERVER,
                    body,
                    "telling where the host is",
                );
                self.http().call(call).await.map(drop)
            })
            .await
    }

    /// Sends an event to all listeners in the guest (`POST /1.0/events`).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn send_event(&self, event: &NewEvent) -> Result<(), ClientError> {
        self.agent
            .run("send_event", async {
                let body = serde_json::to_vec(event)
                    .map_err(|error| ClientError::protocol_because("an event is no JSON", error))?;
                let call = Call::change(
                    Method::Post.on_wire(),
                    path::EVENTS,
                    body,
                    "telling an event",
                );
                self.http().call(call).await.map(drop)
            })
            .await
    }

    /// The agent's running operations, and those that ended recently.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        self.agent
            .run("operations", async {
                let path = format!("{}?recursion=1", path::OPERATIONS);
                let call = Call::get(path, "listing operations");
                operation::flatten(self.http().call(call).await?.metadata)
            })
            .await
    }

    /// One operation.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when the agent does not know it: status 404, or 500 from LXD's
    /// agents; or another [`ClientError`].
    pub async fn operation(&self, id: OperationId) -> Result<Operation, ClientError> {
        self.agent
            .run("operation", async {
                let call = Call::get(path::operation(id), "asking for an operation");
                metadata(self.http().call(call).await?, "the operation")
            })
            .await
    }

    /// Waits for the end of an operation, at most `limit`, which is rounded up to whole seconds, or for
    /// ever.
    ///
    /// The operation that comes back need not have ended: see [`Operation::is_final`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the operation goes on when the future is dropped.
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
        self.agent
            .run("wait_operation", async {
                let call = Call::get(path::operation_wait(id, limit), "waiting for an operation");
                let call = call.with_extra_time(limit.unwrap_or(Duration::MAX / 2));
                metadata(self.http().call(call).await?, "the operation")
            })
            .await
    }

    /// Cancels an operation.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when it cannot be cancelled: LXD's agent cannot cancel a command.
    pub async fn cancel_operation(&self, id: OperationId) -> Result<(), ClientError> {
        self.agent
            .run("cancel_operation", async {
                self.agent.cancel_operation(id).await
            })
            .await
    }

    /// A command to run: `program`, whose arguments are [added](Exec::arg).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Exec {
        Exec::new(Arc::clone(&self.agent), program.as_ref())
    }

    /// A command to run: `program` with `arguments`.
    pub fn exec<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Exec {
        self.command(program).args(arguments)
    }

    /// Starts a file session.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the session is not started, or ends.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn sftp(&self) -> Result<Sftp, ClientError> {
        self.sftp_with(&SessionOptions::default()).await
    }

    /// Starts a file session as a user, below a directory, or for reading only.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the session is not started, or ends.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] when the agent does not confirm that it applies `options`;
    /// [`ClientError::Agent`] when it refuses them, or another [`ClientError`].
    pub async fn sftp_with(&self, options: &SessionOptions) -> Result<Sftp, ClientError> {
        self.agent
            .run("sftp_with", async {
                let stream = self.open_sftp(options).await?;
                let silence = self.agent.timeouts.silence_or(sftp::SILENCE_TIMEOUT);
                Sftp::start(stream, silence)
                    .await?
                    .of(self.endpoint())
                    .confirm(options)
            })
            .await
    }

    /// A connection that speaks SFTP, for a caller that has its own SFTP client.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the connection closes.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn raw_sftp(&self) -> Result<AgentStream, ClientError> {
        self.agent
            .run("raw_sftp", async {
                self.open_sftp(&SessionOptions::default()).await
            })
            .await
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

    /// Connects to a TCP port of the guest's loopback address.
    ///
    /// Each connection to the port is one to the agent. Over TLS, `shutdown` ends the direction to the port,
    /// and the other one goes on; without TLS it only flushes. Dropping the stream closes both.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the connection closes. The port may have been connected to.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] when nothing listens on the port; [`ClientError::Unsupported`] for LXD's
    /// agent, or another [`ClientError`].
    pub async fn port_forward(&self, port: u16) -> Result<AgentStream, ClientError> {
        self.forward(&PortForward::new(port)).await
    }

    /// As [`Client::port_forward`], to another address: an IP address that the guest reaches, or a name in
    /// its `/etc/hosts`.
    ///
    /// # Cancel safety
    ///
    /// As for [`Client::port_forward`].
    ///
    /// # Errors
    ///
    /// As for [`Client::port_forward`].
    pub async fn port_forward_to(
        &self,
        address: impl Into<String>,
        port: u16,
    ) -> Result<AgentStream, ClientError> {
        let mut to = PortForward::new(port);
        to.address = address.into();
        self.forward(&to).await
    }

    async fn forward(&self, to: &PortForward) -> Result<AgentStream, ClientError> {
        self.agent
            .run("port_forward", async {
                self.need(version::PORT_FORWARD, "connect to ports of the guest")
                    .await?;
                const DURING: &str = "connecting to a port";
                let call = Call::get(path::port_forward(to), DURING);
                let stream = self.http().connect_stream(&call, port_forward::PROTOCOL);
                if let Some(stream) = stream.await? {
                    return Ok(stream);
                }
                let body = serde_json::to_vec(to).map_err(|error| {
                    ClientError::protocol_because("an address is no JSON", error)
                })?;
                let call = Call::change(Method::Post.on_wire(), path::PORT_FORWARD, body, DURING);
                let upgraded = self.http().upgrade_with(call, port_forward::PROTOCOL, &[]);
                Ok(upgraded.await?.0)
            })
            .await
    }

    /// Sends a request for which there is no method here. `path` starts with `/1.0`, and may have a query.
    ///
    /// The reply is returned whatever its status is; [`Reply::metadata`] tells results from errors.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it. A [`Method::Get`] is cancel safe.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`InvalidInput`](std::io::ErrorKind::InvalidInput) for something that is
    /// no path; [`ClientError::Protocol`] or [`ClientError::Agent`] for a reply that is not JSON, or another
    /// [`ClientError`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Reply, ClientError> {
        self.agent
            .run("request", async {
                let body = body.map(|body| body.to_string().into_bytes());
                let call =
                    Call::change(method.on_wire(), checked(path)?, body, "sending a request");
                let (status, body) = self.http().call_raw(call).await?;
                Ok(Reply::new(status.as_u16(), take_json(status, &body)?))
            })
            .await
    }

    /// A connection that speaks `protocol` from now on (`GET` with `Upgrade`), for which there is no method
    /// here.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the connection closes.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`InvalidInput`](std::io::ErrorKind::InvalidInput) for something that is
    /// no path or no name of a protocol; [`ClientError::Agent`] when the agent refuses it, or another
    /// [`ClientError`].
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<AgentStream, ClientError> {
        self.agent
            .run("upgrade", async {
                let (path, protocol) = (checked(path)?, checked_protocol(protocol)?);
                let upgraded = self
                    .http()
                    .upgrade(path, protocol, &[], "upgrading a connection");
                Ok(upgraded.await?.0)
            })
            .await
    }

    /// Events of the given kinds from now on; without kinds, of all kinds of the agent.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the connection closes.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] with [`InvalidInput`](std::io::ErrorKind::InvalidInput) for a kind that is not one of
    /// [`DEFAULT_KINDS`], of which there are no events. Or another [`ClientError`].
    pub async fn events(&self, kinds: &[&str]) -> Result<Events, ClientError> {
        self.agent
            .run("events", async {
                if let Some(kind) = kinds.iter().find(|kind| !DEFAULT_KINDS.contains(kind)) {
                    let reason = format!("there are no events of the kind {kind:?}");
                    return Err(ClientError::invalid_argument("listen for events", reason));
                }
                self.any_events(kinds).await
            })
            .await
    }

    /// A stream without events, which shows that the agent is running: it ends with the agent.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the connection closes.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn presence(&self) -> Result<Events, ClientError> {
        self.agent
            .run("presence", self.any_events(&[NO_EVENTS]))
            .await
    }

    async fn any_events(&self, kinds: &[&str]) -> Result<Events, ClientError> {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        Events::open(Arc::clone(&self.agent), kinds).await
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

/// Why an agent that was connected to gave no answer, if it may still be starting.
fn not_ready(error: ClientError) -> Result<ConnectError, ClientError> {
    match error {
        ClientError::ConnectionLost { source, .. } => {
            let source = source.unwrap_or_else(|| "the connection was lost".into());
            Ok(ConnectError::ClosedUnanswered(source))
        }
        ClientError::Silent { after, .. } => Ok(ConnectError::TimedOut(after)),
        error => Err(error),
    }
}
