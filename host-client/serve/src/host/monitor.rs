//! Monitors one agent: sends it the address of this host whenever the agent starts, and the changes
//! of its instance data.
//!
//! ```text
//! connect ─► PUT /1.0 ─► GET /1.0/events, which stays open as long as the agent runs
//!    ▲                        │ its data changed: PUT /1.0, POST /1.0/events
//!    └──────── lost ──────────┘
//! ```

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::{
    HostState,
    guest::{ServedGuest, now},
    limits,
};
use vsock_agent_client::{Client, ClientError, ConnectError, Events, Timeouts};
use vsock_agent_protocol::{
    address::{Cid, VsockAddress},
    event::NewEvent,
    host::HostConnection,
    printable::{LOG_CHARS, excerpt, with_causes},
    server_info::ServerInfo,
};

use crate::instance::GuestView;

/// The connection to one agent, and the data that was sent to it.
struct AgentMonitor<'a> {
    host: &'a HostState,
    guest: &'a ServedGuest,
    client: Client,
    /// The agent's process id, and the instance data that was sent to it last.
    sent: Option<(i64, Arc<GuestView>)>,
}

/// Monitors the agent of `guest` until that is no longer served.
pub(super) async fn run(host: &HostState, guest: &ServedGuest) {
    let client = Client::for_daemon(
        guest.spec.endpoint.clone(),
        guest.spec.security.clone(),
        Timeouts::default().with_connect(limits::CONNECT_TIMEOUT),
    );
    let mut monitor = AgentMonitor {
        host,
        guest,
        client,
        sent: None,
    };
    tokio::select! {
        () = monitor.run() => {}
        () = guest.stop.cancelled() => {}
    }
    // Some monitors fail when a handshake with them is abandoned.
    monitor.client.settle().await;
}

impl AgentMonitor<'_> {
    async fn run(&mut self) {
        let mut pause = limits::RETRY_PAUSE.0;
        loop {
            let start = Instant::now();
            let result = self.connect_and_watch().await;
            if start.elapsed() >= limits::LONG_CONNECTION {
                pause = limits::RETRY_PAUSE.0;
            }
            let delay = match &result {
                Ok(()) => pause,
                Err(error) => pause_after(error, pause),
            };
            if let Err(error) = result {
                self.log_error(&error);
            }
            sleep(delay).await;
            pause = (pause * 2).min(limits::RETRY_PAUSE.1);
        }
    }

    /// Connects to the agent and watches it until it ends.
    async fn connect_and_watch(&mut self) -> Result<(), ClientError> {
        let info = self.connect().await?;
        let result = self.watch(&info).await;
        self.guest.agent_lost(self.host);
        result
    }

    /// Connects to the agent and sends it this host's address.
    async fn connect(&mut self) -> Result<ServerInfo, ClientError> {
        let view = self.current().await;
        let info = self.client.probe().await?;
        self.send_host(&view).await?;
        let environment = &info.environment;
        let agent = format!("{} {}", environment.server, environment.server_version);
        let agent = excerpt(agent.as_bytes(), LOG_CHARS);
        self.guest.agent_connected(self.host, boot_of(&info));
        if let Some(left_out) = self.guest.log.admit() {
            let guest = self.guest.name();
            info!(
                guest,
                agent, left_out, "the agent has the address of this host"
            );
        }
        self.host.status.change(self.guest.name(), |status| {
            status.agent = Some(agent);
            status.since = now();
            status.error = None;
        });
        let pid = info.environment.server_pid;
        if let Some((sent_pid, sent)) = self.sent.take()
            && sent_pid == pid
        {
            // The same process has missed changes; a new one has just read everything.
            self.send_changes(&sent, &view).await?;
        }
        self.sent = Some((pid, view));
        Ok(info)
    }

    /// Sends all changes to the agent until it ends.
    async fn watch(&mut self, info: &ServerInfo) -> Result<(), ClientError> {
        // An agent without events is polled instead.
        let mut presence = self.client.presence().await.ok();
        let mut views = self.guest.subscribe();
        let mut poll = interval(limits::PRESENCE_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll.reset();
        loop {
            let current = views.borrow_and_update().clone();
            if let Some(view) = current {
                self.send_view(view).await?;
            }
            tokio::select! {
                _ = views.changed() => {}
                ended = wait_for_end(presence.as_mut()) => {
                    debug!(guest = self.guest.name(), "the agent is gone");
                    return ended;
                }
                _ = poll.tick() => {
                    let now = self.client.probe().await?;
                    if now.environment.server_pid != info.environment.server_pid {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends the agent the difference to the data that was sent last.
    async fn send_view(&mut self, view: Arc<GuestView>) -> Result<(), ClientError> {
        let Some((pid, sent)) = self.sent.clone() else {
            return Ok(());
        };
        if sent == view {
            return Ok(());
        }
        if sent.meta_data != view.meta_data || sent.is_allowed != view.is_allowed {
            // There is no event for these: `PUT /1.0` makes the agent read them again.
            self.send_host(&view).await?;
        }
        self.send_changes(&sent, &view).await?;
        self.sent = Some((pid, view));
        Ok(())
    }

    /// `PUT /1.0`: the address of this host.
    async fn send_host(&self, view: &GuestView) -> Result<(), ClientError> {
        let tls = self.guest.spec.tls.as_ref();
        let mut host = HostConnection::new(VsockAddress {
            cid: Cid::HOST,
            port: self.host.port,
        });
        if let Some(tls) = tls {
            tls.certificate().clone_into(&mut host.certificate);
        }
        host.devlxd = view.is_allowed;
        self.client.set_host(&host).await
    }

    async fn send_changes(&self, old: &GuestView, new: &GuestView) -> Result<(), ClientError> {
        let changes = new.changes_since(old);
        if changes.is_empty() || !new.is_allowed {
            return Ok(());
        }
        let (guest, count) = (self.guest.name(), changes.len());
        info!(guest, changes = count, "sending changes");
        if changes.len() > limits::MAX_EVENTS {
            return self.send_host(new).await;
        }
        for mut change in changes {
            shorten(&mut change);
            self.client.send_event(&change).await?;
        }
        Ok(())
    }

    /// The guest's instance data, as soon as it can be read.
    async fn current(&self) -> Arc<GuestView> {
        let mut views = self.guest.subscribe();
        loop {
            if let Some(view) = views.borrow_and_update().clone() {
                return view;
            }
            if views.changed().await.is_err() {
                // The sender is part of `self.guest`.
                std::future::pending::<()>().await;
            }
        }
    }

    fn log_error(&self, error: &ClientError) {
        let text = excerpt(with_causes(error).as_bytes(), LOG_CHARS);
        let mut is_new = false;
        self.host.status.change(self.guest.name(), |status| {
            is_new = status.error.as_deref() != Some(&text);
            if status.agent.take().is_some() {
                status.since = now();
            }
            status.error = Some(text.clone());
        });
        let guest = self.guest.name();
        // No warning for a virtual machine that does not run.
        let is_logged = is_new && !matches!(error, ClientError::Connect { .. });
        match is_logged.then(|| self.guest.log.admit()).flatten() {
            Some(left_out) => warn!(guest, error = text, left_out, "cannot reach the agent"),
            None => debug!(guest, error = text, "cannot reach the agent"),
        }
    }
}

/// Identifies a boot of a guest: the kernel's boot id if the agent sends it, else the agent's process
/// id.
fn boot_of(info: &ServerInfo) -> String {
    match &info.boot_id {
        Some(id) => excerpt(id.as_bytes(), LOG_CHARS),
        None => format!("process {}", info.environment.server_pid),
    }
}

/// Empties the values of an event that is too large for an agent.
fn shorten(event: &mut NewEvent) {
    if event.metadata.to_string().len() > limits::MAX_EVENT_BYTES
        && let Some(fields) = event.metadata.as_object_mut()
    {
        for (_, value) in fields.iter_mut().filter(|(name, _)| name.contains("value")) {
            *value = serde_json::Value::String(String::new());
        }
    }
}

/// Waits until the agent closes the stream of events, which it does when it ends.
async fn wait_for_end(presence: Option<&mut Events>) -> Result<(), ClientError> {
    let Some(presence) = presence else {
        return std::future::pending().await;
    };
    while presence.next().await?.is_some() {}
    Ok(())
}

/// The pause after `error`: longer if another try soon would fail the same way.
fn pause_after(error: &ClientError, pause: Duration) -> Duration {
    match error {
        ClientError::IdentityRefused { .. }
        | ClientError::Agent { .. }
        | ClientError::Connect {
            source: ConnectError::WrongAgent | ConnectError::NotTls(_) | ConnectError::NotHybrid(_),
            ..
        } => limits::REFUSED_PAUSE,
        _ => pause,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn too_large_an_event_is_sent_without_its_values() {
        let shortened = |value: String| {
            let metadata = json!({ "key": "user.a", "old_value": "", "value": value });
            let mut event = NewEvent::new("config", metadata);
            shorten(&mut event);
            event
        };
        let small = shortened("x".to_owned());
        assert_eq!(small.metadata["value"], "x");
        let large = shortened("x".repeat(limits::MAX_EVENT_BYTES));
        assert_eq!(
            large.metadata,
            json!({ "key": "user.a", "old_value": "", "value": "" })
        );
    }

    #[test]
    fn the_pause_is_longer_after_a_refusal() {
        let refused = ClientError::Agent {
            endpoint: None,
            status: 400,
            text: String::new(),
        };
        let pause = Duration::from_millis(200);
        assert_eq!(pause_after(&refused, pause), limits::REFUSED_PAUSE);
        let lost = ClientError::ConnectionLost {
            endpoint: None,
            during: "x",
            source: None,
        };
        assert_eq!(pause_after(&lost, pause), pause);
    }
}
