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
    http::{ANSWER_TIMEOUT, Call, Http, metadata},
    protocol::{envelope::Envelope, operation::OperationId, path, server_info::ServerInfo},
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
        Self {
            http: Http::new(connector, timeouts.silence_or(ANSWER_TIMEOUT)),
            timeouts,
            info: Mutex::new(None),
            background: TaskTracker::new(),
        }
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
