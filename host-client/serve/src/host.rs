//! The host process: answers guests that ask about their instance, and tells their agents where to
//! ask.
//!
//! ```text
//! guest's agent ──vsock or <socket>_<port>──► door ─► place (who may come from there?) ─► TLS
//!                                                        ─► api: that guest's data, nothing else
//! guest's agent ◄── PUT /1.0, POST /1.0/events ── link ◄── the instance's file changed
//! ```
//!
//! One process serves all guests of a host. Guests are hostile: each has its own limits, and a
//! guest is known by where it comes from *and* by the certificate of its agent. [`HostProcess`] owns
//! every task; it writes no instance data but an instance-id for a guest that has none.

mod api;
mod door;
mod limits;
mod link;
mod log_limit;
mod place;
mod progress;
mod resident;
mod status;
mod tls;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use futures_util::future::join_all;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::{
    door::{Door, DoorLog},
    place::{Origin, Place},
    resident::Resident,
    status::StatusFile,
};
pub use self::{
    progress::GuestReport,
    resident::Guest,
    status::{AgentReport, StatusReport},
    tls::{GuestTls, GuestTlsError},
};
use crate::instance::InstanceStore;

/// Tells of a machine's name whether it is one of the configuration's now, not when it was read last.
/// It may block.
pub type IsRegistered = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// What a host process needs to begin.
pub struct HostConfig {
    /// The port guests ask at: on AF_VSOCK, and in the name of the Unix socket `<socket>_<port>`.
    pub port: u32,
    /// The instances.
    pub store: InstanceStore,
    /// What guests are told of where they are: the host's name.
    pub location: String,
    /// Where to keep what is known of the guests, for others to read.
    pub status: PathBuf,
    /// Asked before an instance is made for a guest that has none, so that one that was just
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

/// The host process. It needs a tokio runtime; dropping it cuts everything off.
#[derive(Debug)]
pub struct HostProcess {
    house: Arc<House>,
    residents: HashMap<String, Arc<Resident>>,
    doors: HashMap<Door, CancellationToken>,
}

/// What all tasks share.
struct House {
    port: u32,
    location: String,
    store: InstanceStore,
    status: StatusFile,
    is_registered: IsRegistered,
    places: RwLock<HashMap<Origin, Arc<Place>>>,
    /// What was said of listeners.
    door_logs: Mutex<HashMap<Door, DoorLog>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl House {
    fn place(&self, origin: &Origin) -> Option<Arc<Place>> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.get(origin).cloned()
    }
}

impl HostProcess {
    /// Makes one that serves nobody yet.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let house = Arc::new(House {
            port: config.port,
            location: config.location,
            store: config.store,
            status: StatusFile::new(config.status, config.port),
            is_registered: config.is_registered,
            places: RwLock::default(),
            door_logs: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let keeper = Arc::clone(&house);
        house
            .tasks
            .spawn(async move { keeper.status.keep(&keeper.stop).await });
        Self {
            house,
            residents: HashMap::new(),
            doors: HashMap::new(),
        }
    }

    /// Serves exactly these guests from now on. Those that are the same as before notice nothing.
    ///
    /// When this returns, each socket has been tried, or a second has passed; one that cannot be
    /// listened on is tried again every second.
    pub async fn set_guests(&mut self, guests: Vec<Guest>) {
        let mut residents = HashMap::new();
        for guest in guests {
            let name = guest.name.clone();
            let resident = match self.residents.remove(&name) {
                Some(known) if known.guest == guest => known,
                known => {
                    if let Some(old) = known {
                        old.stop.cancel();
                    }
                    self.welcome(guest).await
                }
            };
            residents.insert(name, resident);
        }
        for (name, gone) in std::mem::replace(&mut self.residents, residents) {
            gone.stop.cancel();
            if !self.residents.contains_key(&name) {
                info!(guest = name, "no longer served");
            }
        }
        let is_served = |name: &str| self.residents.contains_key(name);
        self.house.status.retain(is_served);
        self.assign_places();
        self.open_doors().await;
    }

    async fn welcome(&self, guest: Guest) -> Arc<Resident> {
        info!(guest = guest.name, endpoint = %guest.endpoint, "served");
        let state = self.house.status.begin(&guest.name, &guest.endpoint);
        let resident = Arc::new(Resident::new(guest, state, self.house.stop.child_token()));
        let (house, own) = (Arc::clone(&self.house), Arc::clone(&resident));
        let seen = resident.look(&house, None).await;
        self.house
            .tasks
            .spawn(async move { own.read_data(house, seen).await });
        let (house, own) = (Arc::clone(&self.house), Arc::clone(&resident));
        self.house
            .tasks
            .spawn(async move { link::keep(&house, &own).await });
        resident
    }

    /// Says who may come from where. A place keeps its limits as long as somebody lives there.
    fn assign_places(&self) {
        let mut residents: HashMap<Origin, Vec<Arc<Resident>>> = HashMap::new();
        for resident in self.residents.values() {
            let Some(origin) = Origin::of(&resident.guest.endpoint, self.house.port) else {
                continue;
            };
            residents
                .entry(origin)
                .or_default()
                .push(Arc::clone(resident));
        }
        let mut places = self
            .house
            .places
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::take(&mut *places);
        for (origin, residents) in residents {
            let admission = old.get(&origin).map(|place| place.admission());
            let place = Place::new(origin.clone(), residents, admission.unwrap_or_default());
            places.insert(origin, Arc::new(place));
        }
    }

    async fn open_doors(&mut self) {
        let mut wanted: Vec<Door> = {
            let places = self
                .house
                .places
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            places.values().map(|place| place.door()).collect()
        };
        wanted.sort();
        wanted.dedup();
        self.doors.retain(|door, stop| {
            let stays = wanted.contains(door);
            if !stays {
                stop.cancel();
            }
            stays
        });
        self.house
            .door_logs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|door, _| wanted.contains(door));
        let mut under_way = Vec::new();
        for door in wanted {
            if self.doors.contains_key(&door) {
                continue;
            }
            let (tried, is_tried) = oneshot::channel();
            under_way.push(is_tried);
            let stop = self.house.stop.child_token();
            let (house, own, token) = (Arc::clone(&self.house), door.clone(), stop.clone());
            self.house
                .tasks
                .spawn(async move { own.attend(&house, tried, &token).await });
            self.doors.insert(door, stop);
        }
        // It is an error that tells that one was tried.
        let tried = join_all(under_way);
        let _ = timeout(limits::FIRST_TRY_TIMEOUT, tried).await;
    }

    /// Stops: sockets are removed, connections get a moment to end.
    pub async fn stop(self) {
        self.house.stop.cancel();
        self.house.tasks.close();
        if timeout(limits::STOP_TIMEOUT, self.house.tasks.wait())
            .await
            .is_err()
        {
            warn!("connections were cut off");
        }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        self.house.stop.cancel();
    }
}
