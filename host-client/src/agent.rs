//! The state of a client that its parts share: the HTTP connections and what is known of the agent.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::Method;
use serde_json::Value;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug_span};

use crate::{
    connect::{AgentStream, Connector},
    counters::Tally,
    endpoint::Endpoint,
    error::ClientError,
    events::LISTENING,
    http::{
        ANSWER_TIMEOUT, Call, Http,
        http2::{Http2, SILENCE_TIMEOUT},
        metadata,
    },
    protocol::{
        envelope::Envelope, operation::OperationId, path, server_info::ServerInfo, version,
    },
    timeouts::Timeouts,
    ws::{self, Socket},
};

/// Additional time for an agent to cancel an operation.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// One agent, as [`Client`](crate::Client), commands and operations use it.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) http: Http,
    pub(crate) timeouts: Timeouts,
    info: Mutex<Option<Arc<ServerInfo>>>,
    /// Tasks that continue when their caller is dropped.
    pub(crate) background: TaskTracker,
}

impl Agent {
    pub(crate) fn new(connector: Connector, timeouts: Timeouts) -> Self {
        let (answer, silence) = (ANSWER_TIMEOUT, SILENCE_TIMEOUT);
        let (answer, silence) = (timeouts.silence_or(answer), timeouts.silence_or(silence));
        Self {
            http: Http::new(connector, answer, silence),
            timeouts,
            info: Mutex::new(None),
            background: TaskTracker::new(),
        }
    }

    /// The same, which never uses HTTP/2.
    pub(crate) fn without_http2(mut self) -> Self {
        self.http = self.http.without_http2();
        self
    }

    /// Does what a method of the library is for: in a span, counted, and with the endpoint in its error.
    pub(crate) async fn run<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let span = debug_span!("call", endpoint = %self.endpoint(), method);
        let done = work.instrument(span).await;
        self.tally().called(done.is_ok());
        done.map_err(|error| error.at(self.endpoint()))
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.http.connector().tally
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        self.http.connector().endpoint()
    }

    /// Requests the agent's version and API extensions.
    pub(crate) async fn server_info(&self) -> Result<ServerInfo, ClientError> {
        let call = Call::get(path::SERVER, "asking what the agent is");
        self.learn(self.http.call(call).await?)
    }

    /// The same on a new connection, once.
    pub(crate) async fn server_info_over(
        &self,
        stream: AgentStream,
    ) -> Result<ServerInfo, ClientError> {
        let call = Call::get(path::SERVER, "asking what the agent is");
        self.learn(self.http.call_over(stream, call).await?)
    }

    fn learn(&self, answer: Envelope<Value>) -> Result<ServerInfo, ClientError> {
        let info: ServerInfo = metadata(answer, "the description")?;
        *self.info() = Some(Arc::new(info.clone()));
        Ok(info)
    }

    /// The last result of [`server_info`](Self::server_info), requested if there is none.
    pub(crate) async fn known_info(&self) -> Result<Arc<ServerInfo>, ClientError> {
        let known = self.info().clone();
        match known {
            Some(info) => Ok(info),
            None => self.server_info().await.map(Arc::new),
        }
    }

    /// The HTTP/2 connection, opened if there is none. `None` if the agent does not speak HTTP/2.
    pub(crate) async fn http2(&self) -> Result<Option<Http2>, ClientError> {
        if let Some(open) = self.http.open_http2().await {
            return Ok(Some(open));
        }
        // Without TLS, only its extensions say so.
        if self.http.connector().is_answered() || self.known_info().await?.has(version::HTTP2) {
            self.http.http2().await
        } else {
            Ok(None)
        }
    }

    /// What is known of the agent on an HTTP/2 connection, without asking: one that speaks HTTP/2 has all
    /// extensions of this version.
    pub(crate) fn http2_info(&self) -> Arc<ServerInfo> {
        let known = self.info().clone();
        known.unwrap_or_else(|| {
            let mut info = ServerInfo::default();
            let extensions = version::API_EXTENSIONS.iter();
            info.api_extensions = extensions.map(|name| (*name).to_owned()).collect();
            Arc::new(info)
        })
    }

    pub(crate) async fn cancel_operation(&self, id: OperationId) -> Result<(), ClientError> {
        let during = "cancelling an operation";
        let call = Call::change(Method::DELETE, path::operation(id), None, during);
        let call = call.with_extra_time(CANCEL_TIMEOUT);
        self.http.call(call).await.map(drop)
    }

    /// A websocket with the events of these kinds; without kinds, of all.
    pub(crate) async fn event_socket(&self, kinds: &[&str]) -> Result<Socket, ClientError> {
        let path = match kinds {
            [] => path::EVENTS.to_owned(),
            kinds => format!("{}?type={}", path::EVENTS, kinds.join(",")),
        };
        ws::open(&self.http, &path, ws::SMALL_BUFFER_BYTES, LISTENING).await
    }

    fn info(&self) -> MutexGuard<'_, Option<Arc<ServerInfo>>> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
