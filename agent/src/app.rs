//! Everything a handler may reach.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{defaults, events::Events, exec::Session, operation::Registry, shutdown::Shutdown};

/// The rooms, built once and shared by all connections.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) commands: Session,
    /// Whether commands end when the agent stops.
    pub(crate) end_commands: bool,
    pub(crate) events: Events,
    pub(crate) operations: Registry,
    pub(crate) sftp_sessions: Arc<Semaphore>,
    pub(crate) shutdown: Shutdown,
}

impl App {
    /// Builds the rooms, and connects the operations to the events.
    pub(crate) fn new(shutdown: Shutdown, end_commands: bool) -> Self {
        let events = Events::new();
        let bus = events.clone();
        let operations = Registry::new(shutdown.clone(), move |operation| {
            let metadata = serde_json::json!(operation);
            bus.publish(vsock_agent_protocol::event::OPERATION, metadata);
        });
        Self {
            commands: Session::new(),
            end_commands,
            events,
            operations,
            sftp_sessions: Arc::new(Semaphore::new(defaults::MAX_SFTP_SESSIONS)),
            shutdown,
        }
    }
}
