//! The instance data of the host: configuration keys, meta-data, devices.
//!
//! ```text
//! host ──PUT /1.0, events──► Refresher ──snapshot──► InstanceData ──► guest_api, cloud_init
//!   ◄────────GET────────────┘                             └─PATCH /1.0─► host
//! ```
//!
//! A snapshot is published when it is complete. Replies in the guest come from the snapshot, without waiting
//! for the host. Independent of the guest's sockets and of cloud-init.

mod changes;
mod fetch;
mod host_api;
mod refresh;
mod saved;
mod snapshot;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use vsock_agent_protocol::guest_api::{self, GuestState, StateReport};

use crate::{defaults, events::Events};

use self::host_api::HostApi;

pub(crate) use self::{
    host_api::{CallError, HostResponse},
    refresh::Refresher,
    saved::SavedSnapshot,
    snapshot::Snapshot,
};

/// The current snapshot, and the connection to the host. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct InstanceData {
    state: watch::Sender<Availability>,
    events: Events,
    host: Arc<Mutex<Option<HostApi>>>,
}

/// Availability of the data.
#[derive(Debug, Clone, Default)]
pub(crate) enum Availability {
    /// The host's address is unknown, or the host has not replied yet.
    #[default]
    Unknown,
    /// The host has disabled the guest API for this instance.
    Disabled,
    /// The current data.
    Available(Arc<Snapshot>),
}

impl InstanceData {
    pub(crate) fn new() -> Self {
        Self {
            state: watch::Sender::default(),
            events: Events::new(),
            host: Arc::default(),
        }
    }

    /// Watches the data.
    pub(crate) fn watch(&self) -> watch::Receiver<Availability> {
        self.state.subscribe()
    }

    /// The current data, if available.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        match &*self.state.borrow() {
            Availability::Available(snapshot) => Some(Arc::clone(snapshot)),
            Availability::Unknown | Availability::Disabled => None,
        }
    }

    /// Events of changed keys and devices. Each is published after the snapshot with the change.
    pub(crate) const fn events(&self) -> &Events {
        &self.events
    }

    /// Reports the state of the instance to the host.
    ///
    /// # Errors
    ///
    /// [`CallError`]: `TimedOut` after [`defaults::REPORT_TIMEOUT`].
    pub(crate) async fn report(&self, state: GuestState) -> Result<(), CallError> {
        let host = self.host().ok_or(CallError::NoHost)?;
        let body = json!(StateReport::from(state));
        let mut client = host.client();
        let call = client.call(Method::PATCH, guest_api::INFO, Some(&body));
        timeout(defaults::REPORT_TIMEOUT, call)
            .await
            .unwrap_or(Err(CallError::TimedOut))?;
        self.state.send_if_modified(|known| {
            if let Availability::Available(snapshot) = known {
                Arc::make_mut(snapshot).info.state = state.name().to_owned();
            }
            false
        });
        Ok(())
    }

    /// Forwards a request from the guest to the host, and returns the head of the response. No time limit.
    ///
    /// # Errors
    ///
    /// [`CallError`]; with [`CallError::NoHost`], [`CallError::Connect`] and [`CallError::Tls`] the host
    /// has not received the request.
    pub(crate) async fn forward(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<HostResponse, CallError> {
        let host = self.host().ok_or(CallError::NoHost)?;
        host.send(request).await
    }

    fn publish(&self, snapshot: Snapshot) {
        self.state
            .send_replace(Availability::Available(Arc::new(snapshot)));
    }

    /// Publishes the snapshot if the availability is unknown. True if it was published.
    fn publish_if_unknown(&self, snapshot: Snapshot) -> bool {
        self.state.send_if_modified(|state| {
            let is_unknown = matches!(state, Availability::Unknown);
            if is_unknown {
                *state = Availability::Available(Arc::new(snapshot));
            }
            is_unknown
        })
    }

    fn host(&self) -> Option<HostApi> {
        let host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        host.clone()
    }

    fn set_host(&self, host: Option<HostApi>) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = host;
    }
}
