//! What this instance is told by its host: keys, meta-data, devices.
//!
//! ```text
//! host ──PUT /1.0, events──► Refresher ──snapshot──► InstanceData ──► guest_api, cloud_init
//!   ◄────────GET────────────┘                             └─PATCH /1.0─► host
//! ```
//!
//! The whole of it is fetched before anybody sees any of it, and answers come from what was fetched,
//! so nobody in the guest waits for the host. Knows neither sockets of the guest nor cloud-init.

mod changes;
mod fetch;
mod host_api;
mod kept;
mod refresh;
mod snapshot;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use vsock_agent_protocol::guest_api::{self, GuestState, StateReport};

use crate::{defaults, events::Events};

use self::host_api::HostApi;

pub(crate) use self::{
    host_api::{CallError, HostAnswer},
    kept::Kept,
    refresh::Refresher,
    snapshot::Snapshot,
};

/// What is known of the instance, and the way to its host. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct InstanceData {
    state: watch::Sender<Availability>,
    events: Events,
    host: Arc<Mutex<Option<HostApi>>>,
}

/// Whether there are data.
#[derive(Debug, Clone, Default)]
pub(crate) enum Availability {
    /// Nobody has said where the host is, or it has not answered yet.
    #[default]
    Unknown,
    /// The host does not want this guest to know anything.
    Off,
    /// This is known.
    Here(Arc<Snapshot>),
}

impl InstanceData {
    pub(crate) fn new() -> Self {
        Self {
            state: watch::Sender::default(),
            events: Events::new(),
            host: Arc::default(),
        }
    }

    /// What is known, now and whenever it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Availability> {
        self.state.subscribe()
    }

    /// What is known now.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        match &*self.state.borrow() {
            Availability::Here(snapshot) => Some(Arc::clone(snapshot)),
            Availability::Unknown | Availability::Off => None,
        }
    }

    /// Changes of keys and devices, and nothing else; each is told when the snapshot has it.
    pub(crate) const fn events(&self) -> &Events {
        &self.events
    }

    /// Tells the host how far the instance is.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Silent`] after [`defaults::REPORT_TIMEOUT`].
    pub(crate) async fn report(&self, state: GuestState) -> Result<(), CallError> {
        let host = self.host().ok_or(CallError::NoHost)?;
        let body = json!(StateReport { state });
        let mut caller = host.caller();
        let call = caller.call(Method::PATCH, guest_api::INFO, Some(&body));
        timeout(defaults::REPORT_TIMEOUT, call)
            .await
            .unwrap_or(Err(CallError::Silent))?;
        self.state.send_if_modified(|known| {
            if let Availability::Here(snapshot) = known {
                Arc::make_mut(snapshot).info.state = state.name().to_owned();
            }
            false
        });
        Ok(())
    }

    /// Passes a request of a program in the guest to the host, and waits for the head of its
    /// answer as long as there is a connection.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::NoHost`], [`CallError::Connect`] and [`CallError::Tls`] if the host
    /// does not have the request.
    pub(crate) async fn forward(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<HostAnswer, CallError> {
        let host = self.host().ok_or(CallError::NoHost)?;
        host.ask(request).await
    }

    fn publish(&self, snapshot: Snapshot) {
        self.state
            .send_replace(Availability::Here(Arc::new(snapshot)));
    }

    /// Publishes it if nothing is known yet. False if something is.
    fn publish_if_unknown(&self, snapshot: Snapshot) -> bool {
        self.state.send_if_modified(|state| {
            let is_unknown = matches!(state, Availability::Unknown);
            if is_unknown {
                *state = Availability::Here(Arc::new(snapshot));
            }
            is_unknown
        })
    }

    fn forget(&self, state: Availability) {
        self.state.send_replace(state);
    }

    fn tell(&self, kind: &str, metadata: Value) {
        self.events.publish(kind, metadata);
    }

    fn host(&self) -> Option<HostApi> {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        host.clone()
    }

    fn set_host(&self, host: Option<HostApi>) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = host;
    }
}
