//! The state that handlers share.

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
    exec::{CommandRunner, ExecPolicy},
    guest::instance_data::InstanceData,
    lxd_host::{config_share::Hotplug, host::Host, status_port::StatusPorts},
    operation::Registry,
    sftp::Budget,
    shutdown::Shutdown,
    system::state::{AgentNumbers, StateReader},
};

/// What the host is allowed to do.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) features: Features,
    pub(crate) exec: ExecPolicy,
}

/// The state of the modules, shared by all connections.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) commands: CommandRunner,
    /// Permits of HTTP connections.
    pub(crate) connections: Arc<Semaphore>,
    counts: Arc<Counts>,
    /// Whether commands end when the agent stops.
    pub(crate) end_commands: bool,
    pub(crate) events: Events,
    /// The flavour of the host.
    pub(crate) family: Family,
    policy: RwLock<Arc<Policy>>,
    pub(crate) state: StateReader,
    pub(crate) host: Host,
    pub(crate) hotplug: Hotplug,
    pub(crate) instance_data: InstanceData,
    /// Permits of event listeners.
    pub(crate) listeners: Arc<Semaphore>,
    pub(crate) operations: Registry,
    pub(crate) port_forwards: Arc<Semaphore>,
    /// The memory budget of waiting requests in all SFTP sessions.
    pub(crate) sftp_budget: Arc<Budget>,
    pub(crate) sftp_sessions: Arc<Semaphore>,
    pub(crate) shutdown: Shutdown,
    pub(crate) status_ports: StatusPorts,
}

impl App {
    /// Creates the state. Changes of operations are published as events.
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
            commands: CommandRunner::new(shutdown.clone()),
            connections: Arc::new(Semaphore::new(defaults::MAX_CONNECTIONS)),
            counts,
            end_commands,
            events,
            family,
            policy: RwLock::new(Arc::new(policy)),
            state: StateReader::default(),
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

    /// The current policy.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the policy for later requests.
    pub(crate) fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// The agent's own metrics.
    pub(crate) fn numbers(&self) -> AgentNumbers {
        let taken =
            |permits: &Semaphore, all: usize| all.saturating_sub(permits.available_permits());
        // `ended` first, so that it does not exceed `started`.
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

/// Numbers of operations since the start. All operations are commands.
#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    ended: AtomicU64,
}

impl Counts {
    /// Counts a state change. An operation has one `Running` state and one final state.
    fn count(&self, operation: &Operation) {
        if operation.is_final() {
            self.ended.fetch_add(1, Ordering::AcqRel);
        } else if operation.status_code == OperationStatus::Running.code() {
            self.started.fetch_add(1, Ordering::AcqRel);
        }
    }
}
