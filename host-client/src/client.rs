//! `Client`: one method per resource of an agent.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use http::Method;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    connect::{Connector, DEFAULT_CONNECT_TIMEOUT},
    endpoint::Endpoint,
    error::ClientError,
    exec::Exec,
    http::{Call, Http, metadata},
    operation,
    protocol::{
        event::{Event, NewEvent},
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
    info: Mutex<Option<Arc<ServerInfo>>>,
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
        let http = Http::new(Connector::new(endpoint, security, timeout));
        Self {
            inner: Arc::new(Inner {
                http,
                info: Mutex::new(None),
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
    #[cfg(feature = "serve")]
    pub(crate) async fn probe(&self) -> Result<ServerInfo, ClientError> {
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
        Sftp::start_upgraded(stream).await?.confirm(options)
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
        let path = match options.is_default() {
            true => path::SFTP.to_owned(),
            false => format!("{}?{}", path::SFTP, options.to_query()),
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
    /// [`ClientError`].
    pub async fn events(&self, kinds: &[&str]) -> Result<Events, ClientError> {
        self.event_socket(kinds)
            .await
            .map(|socket| Events { socket })
    }

    pub(crate) async fn event_socket(&self, kinds: &[&str]) -> Result<Socket, ClientError> {
        let path = match kinds {
            [] => path::EVENTS.to_owned(),
            kinds => format!("{}?type={}", path::EVENTS, kinds.join(",")),
        };
        ws::open(
            self.http(),
            &path,
            ws::SMALL_BUFFER_BYTES,
            "listening for events",
        )
        .await
    }

    /// Waits until nothing is half done that must not be abandoned: a handshake with the monitor
    /// of a virtual machine. Worth a moment before a process ends, after an error to connect.
    pub async fn settle(&self) {
        self.http().connector().settle().await;
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
    socket: Socket,
}

impl Events {
    /// The next event; `None` when the agent ended the stream. Nothing is lost if this is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::ConnectionLost`], or [`ClientError::Protocol`] for what is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Err(error)) => return Err(ClientError::lost("listening for events", error)),
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
                Some(Ok(_)) => {}
            }
        }
    }
}
