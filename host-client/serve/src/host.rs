//! The host process: serves instance data to guests, and sends its address to their agents.
//!
//! ```text
//! guest's agent ──vsock or <socket>_<port>──► listener ─► peer: limits, TLS, which guest
//!                                                            ─► api: that guest's data, nothing else
//! guest's agent ◄── PUT /1.0, POST /1.0/events ── monitor ◄── the instance's file changed
//! ```
//!
//! One process serves all guests of a host. Guests are hostile: each has its own limits, and a
//! guest is identified by its address *and* by the certificate of its agent. [`HostProcess`] owns
//! every task. The only instance data that it writes is an instance-id for a guest without one.

mod api;
mod guest;
mod limits;
mod listener;
mod log_limit;
mod monitor;
mod origin;
mod peer;
mod progress;
mod status;
mod tls;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::future::join_all;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use vsock_agent_transport::{self as transport, Stream};

pub use self::{
    guest::Guest,
    progress::GuestReport,
    status::{AgentReport, StatusReport},
    tls::GuestTls,
};
use self::{
    guest::ServedGuest,
    origin::{ListenAddress, Origin},
    peer::OriginGuests,
    status::StatusFile,
};
use crate::instance::InstanceStore;

/// Whether the configuration has a machine of this name at the time of the call. It may block.
pub type IsRegistered = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What a host process needs to start.
pub struct HostConfig {
    /// The port to listen on: of AF_VSOCK, and in the name of the Unix socket `<socket>_<port>`.
    pub port: u32,
    /// The instances.
    pub store: InstanceStore,
    /// The host's name, sent to guests as `location`.
    pub location: String,
    /// File with the state of the guests, for other programs to read.
    pub status: PathBuf,
    /// Called before an instance is created for a guest that has none, so that one that was just
    /// removed stays removed.
    pub is_registered: IsRegistered,
}

impl fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostConfig")
            .field("port", &self.port)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// The host process. It needs a tokio runtime; dropping it closes all connections.
#[derive(Debug)]
pub struct HostProcess {
    host: Arc<HostState>,
    guests: HashMap<String, Arc<ServedGuest>>,
    listeners: HashMap<ListenAddress, CancellationToken>,
}

/// State that all tasks share.
struct HostState {
    port: u32,
    location: String,
    store: InstanceStore,
    status: StatusFile,
    is_registered: IsRegistered,
    peers: RwLock<HashMap<Origin, Arc<OriginGuests>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostState")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl HostState {
    /// Serves a connection, or closes it if no guest is at its origin.
    fn admit(self: &Arc<Self>, address: &ListenAddress, stream: Stream, from: transport::Peer) {
        let peer = Origin::at(address, from).and_then(|origin| {
            let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
            peers.get(&origin).cloned()
        });
        match peer {
            Some(peer) => peer.admit(self, stream, from.is_privileged()),
            None => debug!(peer = %from, "connection from an unknown machine"),
        }
    }
}

impl HostProcess {
    /// Creates one without guests.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let host = Arc::new(HostState {
            port: config.port,
            location: config.location,
            store: config.store,
            status: StatusFile::new(config.status, config.port),
            is_registered: config.is_registered,
            peers: RwLock::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let own = Arc::clone(&host);
        host.tasks
            .spawn(async move { own.status.write_changes(&own.stop).await });
        Self {
            host,
            guests: HashMap::new(),
            listeners: HashMap::new(),
        }
    }

    /// Serves exactly these guests from now on. Connections of unchanged guests stay open.
    ///
    /// Returns when each socket has been tried, or after a second. A socket that cannot be listened
    /// on is tried again every second.
    pub async fn set_guests(&mut self, guests: Vec<Guest>) {
        let mut served = HashMap::new();
        for guest in guests {
            let name = guest.name.clone();
            let guest = match self.guests.remove(&name) {
                Some(known) if known.spec == guest => known,
                known => {
                    if let Some(old) = known {
                        old.stop.cancel();
                    }
                    self.start_guest(guest).await
                }
            };
            served.insert(name, guest);
        }
        for (name, gone) in std::mem::replace(&mut self.guests, served) {
            gone.stop.cancel();
            if !self.guests.contains_key(&name) {
                info!(guest = name, "no longer served");
            }
        }
        self.host
            .status
            .retain(|name| self.guests.contains_key(name));
        self.assign_peers();
        self.open_listeners().await;
    }

    async fn start_guest(&self, guest: Guest) -> Arc<ServedGuest> {
        info!(guest = guest.name, endpoint = %guest.endpoint, "served");
        let progress = self.host.status.start_guest(&guest.name, &guest.endpoint);
        let stop = self.host.stop.child_token();
        let guest = Arc::new(ServedGuest::new(guest, progress, stop));
        let tasks = &self.host.tasks;
        let (host, own) = (Arc::clone(&self.host), Arc::clone(&guest));
        let seen = guest.reload(&host, None).await;
        tasks.spawn(async move { own.watch_file(host, seen).await });
        let (host, own) = (Arc::clone(&self.host), Arc::clone(&guest));
        tasks.spawn(async move { monitor::run(&host, &own).await });
        guest
    }

    /// Assigns the guests to their origins. The counters of an origin live as long as it has a guest.
    fn assign_peers(&self) {
        let mut guests: HashMap<Origin, Vec<Arc<ServedGuest>>> = HashMap::new();
        for guest in self.guests.values() {
            let Some(origin) = Origin::of(&guest.spec.endpoint, self.host.port) else {
                continue;
            };
            guests.entry(origin).or_default().push(Arc::clone(guest));
        }
        let peers = self.host.peers.write();
        let mut peers = peers.unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *peers);
        for (origin, guests) in guests {
            let admission = old.get(&origin).map(|peer| peer.admission());
            let peer = OriginGuests::new(guests, admission.unwrap_or_default());
            peers.insert(origin, Arc::new(peer));
        }
    }

    async fn open_listeners(&mut self) {
        let wanted: BTreeSet<ListenAddress> = {
            let peers = self.host.peers.read();
            let peers = peers.unwrap_or_else(PoisonError::into_inner);
            peers.keys().map(Origin::listen_address).collect()
        };
        for (_, stop) in self
            .listeners
            .extract_if(|address, _| !wanted.contains(address))
        {
            stop.cancel();
        }
        let mut first_tries = Vec::new();
        for address in wanted {
            if self.listeners.contains_key(&address) {
                continue;
            }
            let (tried, is_tried) = oneshot::channel();
            first_tries.push(is_tried);
            let stop = self.host.stop.child_token();
            let (host, own, token) = (Arc::clone(&self.host), address.clone(), stop.clone());
            self.host.tasks.spawn(async move {
                let accepted = |stream, peer| host.admit(&own, stream, peer);
                listener::run(&own, host.port, tried, &token, accepted).await;
            });
            self.listeners.insert(address, stop);
        }
        // The sender is dropped without a value, so each receiver ends with an error.
        let _ = timeout(limits::FIRST_TRY_TIMEOUT, join_all(first_tries)).await;
    }

    /// Stops: removes the sockets and waits up to [`limits::STOP_TIMEOUT`] for connections to end.
    pub async fn stop(self) {
        self.host.stop.cancel();
        self.host.tasks.close();
        let ended = timeout(limits::STOP_TIMEOUT, self.host.tasks.wait()).await;
        if ended.is_err() {
            warn!("open connections were closed");
        }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        self.host.stop.cancel();
    }
}
