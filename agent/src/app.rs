//! Everything a handler may reach.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Semaphore;
use vsock_agent_protocol::{
    operation::{Operation, OperationStatus},
    version::Family,
};

use crate::{
    config::Features,
    defaults,
    events::Events,
    exec::{ExecPolicy, Session},
    guest::instance_data::InstanceData,
    lxd_host::{config_share::Hotplug, host::Host, status_port::StatusPorts},
    operation::Registry,
    sftp::Budget,
    shutdown::Shutdown,
    system::state::{AgentNumbers, Guest},
};

/// What the host may do.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) features: Features,
    /// Which commands it may run.
    pub(crate) exec: ExecPolicy,
}

/// The rooms, built once and shared by all connections.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) commands: Session,
    /// Places for connections.
    pub(crate) connections: Arc<Semaphore>,
    counts: Arc<Counts>,
    /// Whether commands end when the agent stops.
    pub(crate) end_commands: bool,
    pub(crate) events: Events,
    /// Whose hosts it speaks to.
    pub(crate) family: Family,
    policy: RwLock<Arc<Policy>>,
    pub(crate) guest: Guest,
    pub(crate) host: Host,
    pub(crate) hotplug: Hotplug,
    pub(crate) instance_data: InstanceData,
    /// Places for listeners to events.
    pub(crate) listeners: Arc<Semaphore>,
    pub(crate) operations: Registry,
    pub(crate) port_forwards: Arc<Semaphore>,
    /// Bytes of requests that wait in SFTP sessions.
    pub(crate) sftp_budget: Arc<Budget>,
    pub(crate) sftp_sessions: Arc<Semaphore>,
    pub(crate) shutdown: Shutdown,
    pub(crate) status_ports: StatusPorts,
}

impl App {
    /// Builds the rooms, and connects the operations to the events.
    pub(crate) fn new(
        shutdown: Shutdown,
        end_commands: bool,
        family: Family,
        policy: Policy,
        hotplug: Hotplug,
        status_ports: StatusPorts,
    ) -> Self {
        let events = Events::new();
        let bus = events.clone();
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        let operations = Registry::new(shutdown.clone(), move |operation| {
            counting.count(operation);
            let metadata = serde_json::json!(operation);
            bus.publish(vsock_agent_protocol::event::OPERATION, metadata);
        });
        Self {
            commands: Session::new(shutdown.clone()),
            connections: Arc::new(Semaphore::new(defaults::MAX_CONNECTIONS)),
            counts,
            end_commands,
            events,
            family,
            policy: RwLock::new(Arc::new(policy)),
            guest: Guest::default(),
            host: Host::default(),
            hotplug,
            instance_data: InstanceData::new(),
            listeners: Arc::new(Semaphore::new(defaults::MAX_LISTENERS)),
            operations,
            port_forwards: Arc::new(Semaphore::new(defaults::MAX_PORT_FORWARDS)),
            sftp_budget: Arc::default(),
            sftp_sessions: Arc::new(Semaphore::new(defaults::MAX_SFTP_SESSIONS)),
            shutdown,
            status_ports,
        }
    }

    /// What the host may do now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes that, for what is asked for from now on.
    pub(crate) fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// What the agent counts of itself.
    pub(crate) fn numbers(&self) -> AgentNumbers {
        let taken =
            |permits: &Semaphore, all: usize| all.saturating_sub(permits.available_permits());
        // The ended first: one that ends in between must not seem to have ended before it started.
        let commands_ended = self.counts.ended.load(Ordering::Acquire);
        AgentNumbers {
            version: env!("CARGO_PKG_VERSION"),
            family: self.family.to_string(),
            connections: taken(&self.connections, defaults::MAX_CONNECTIONS),
            commands_started: self.counts.started.load(Ordering::Acquire),
            commands_ended,
            sftp_sessions: taken(&self.sftp_sessions, defaults::MAX_SFTP_SESSIONS),
            port_forwards: taken(&self.port_forwards, defaults::MAX_PORT_FORWARDS),
        }
    }
}

/// Operations since the start. All of them are commands.
#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    ended: AtomicU64,
}

impl Counts {
    /// Counts a new state: an operation has the first one and the last one once each.
    fn count(&self, operation: &Operation) {
        if operation.is_final() {
            self.ended.fetch_add(1, Ordering::AcqRel);
        } else if operation.status_code == OperationStatus::Running.code() {
            self.started.fetch_add(1, Ordering::AcqRel);
        }
    }
}
