//! Our side's way to one agent: tells it where we listen, as soon as it can be reached and again
//! whenever it starts, and what changes.
//!
//! ```text
//! try to reach it ─► PUT /1.0 ─► listen for events that never come: when that ends, so has the agent
//!        ▲                                │ its data changed: PUT /1.0, POST /1.0/events
//!        └──────────── lost ──────────────┘
//! ```

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::{
    House, limits,
    resident::{Resident, now},
};
use vsock_agent_client::{Client, ClientError, ConnectError, Events};
use vsock_agent_protocol::{
    address::Cid,
    event::NewEvent,
    host::HostConnection,
    printable::{LOG_CHARS, excerpt, with_causes},
    server_info::ServerInfo,
};

use crate::instance::{Change, GuestView};

/// A kind of event that nobody tells.
const NO_EVENTS: &str = "vsock-agent-host-presence";

/// One agent, and what it has been told.
struct Link<'a> {
    house: &'a House,
    resident: &'a Resident,
    client: Client,
    /// The agent's process, and what its guest could see when it was told last.
    told: Option<(i64, Arc<GuestView>)>,
}

/// Looks after the agent of `resident` until that is no longer served.
pub(super) async fn keep(house: &House, resident: &Resident) {
    let guest = &resident.guest;
    let client = Client::quiet(
        guest.endpoint.clone(),
        guest.security.clone(),
        limits::CONNECT_TIMEOUT,
    );
    let mut link = Link {
        house,
        resident,
        client,
        told: None,
    };
    tokio::select! {
        () = link.run() => {}
        () = resident.stop.cancelled() => {}
    }
    // Some monitors do not stand it when a handshake with them is abandoned.
    link.client.settle().await;
}

impl Link<'_> {
    async fn run(&mut self) {
        let mut pause = limits::VISIT_PAUSE.0;
        loop {
            let start = Instant::now();
            let visited = self.visit().await;
            if start.elapsed() >= limits::LONG_VISIT {
                pause = limits::VISIT_PAUSE.0;
            }
            let now = match &visited {
                Ok(()) => pause,
                Err(error) => pause_after(error, pause),
            };
            if let Err(error) = visited {
                self.tell_of(&error);
            }
            sleep(now).await;
            pause = (pause * 2).min(limits::VISIT_PAUSE.1);
        }
    }

    /// Meets the agent and stays until it is gone.
    async fn visit(&mut self) -> Result<(), ClientError> {
        let info = self.meet().await?;
        let stayed = self.stay(&info).await;
        self.resident.is_lost(self.house);
        stayed
    }

    /// Reaches the agent and tells it where we are.
    async fn meet(&mut self) -> Result<ServerInfo, ClientError> {
        let view = self.current().await;
        let info = self.client.probe().await?;
        self.tell_host(&view).await?;
        let agent = format!(
            "{} {}",
            info.environment.server, info.environment.server_version
        );
        let agent = excerpt(agent.as_bytes(), LOG_CHARS);
        self.resident.is_reached(self.house, boot_of(&info));
        if let Some(left_out) = self.resident.log.admit() {
            info!(
                guest = self.resident.name(),
                agent, left_out, "the agent knows where its host is"
            );
        }
        self.house.status.change(self.resident.name(), |status| {
            status.agent = Some(agent);
            status.since = now();
            status.error = None;
        });
        let pid = info.environment.server_pid;
        if let Some((told_pid, told)) = self.told.take()
            && told_pid == pid
        {
            // The same process, which has missed something; another one has asked for all of it.
            self.tell_changes(&told, &view).await?;
        }
        self.told = Some((pid, view));
        Ok(info)
    }

    /// Stays with the agent, telling it what changes, until it is gone.
    async fn stay(&mut self, info: &ServerInfo) -> Result<(), ClientError> {
        // An agent without events is looked at now and then.
        let mut presence = self.client.any_events(&[NO_EVENTS]).await.ok();
        let mut views = self.resident.watch();
        let mut look = interval(limits::PRESENCE_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        loop {
            let current = views.borrow_and_update().clone();
            if let Some(view) = current {
                self.catch_up(view).await?;
            }
            tokio::select! {
                _ = views.changed() => {}
                ended = wait_for_end(presence.as_mut()) => {
                    debug!(guest = self.resident.name(), "the agent is gone");
                    return ended;
                }
                _ = look.tick() => {
                    let now = self.client.probe().await?;
                    if now.environment.server_pid != info.environment.server_pid {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Tells the agent what has changed since it was told last.
    async fn catch_up(&mut self, view: Arc<GuestView>) -> Result<(), ClientError> {
        let Some((pid, told)) = self.told.clone() else {
            return Ok(());
        };
        if told == view {
            return Ok(());
        }
        if told.meta_data != view.meta_data || told.is_allowed != view.is_allowed {
            // There is no event for these.
            self.tell_host(&view).await?;
        }
        self.tell_changes(&told, &view).await?;
        self.told = Some((pid, view));
        Ok(())
    }

    async fn tell_host(&self, view: &GuestView) -> Result<(), ClientError> {
        let tls = self.resident.guest.tls.as_ref();
        self.client
            .tell_host(&HostConnection {
                cid: Cid::HOST.0,
                port: self.house.port,
                certificate: tls.map_or_else(String::new, |tls| tls.certificate().to_owned()),
                devlxd: view.is_allowed,
            })
            .await
    }

    async fn tell_changes(&self, old: &GuestView, new: &GuestView) -> Result<(), ClientError> {
        let changes = new.changes_since(old);
        if changes.is_empty() || !new.is_allowed {
            return Ok(());
        }
        info!(
            guest = self.resident.name(),
            changes = changes.len(),
            "telling what changed"
        );
        if changes.len() > limits::MAX_EVENTS {
            return self.tell_host(new).await;
        }
        for change in changes {
            self.client.send_event(&event(change)).await?;
        }
        Ok(())
    }

    /// What the guest may see, as soon as its data can be read.
    async fn current(&self) -> Arc<GuestView> {
        let mut views = self.resident.watch();
        loop {
            if let Some(view) = views.borrow_and_update().clone() {
                return view;
            }
            if views.changed().await.is_err() {
                // The sender lives as long as the resident, which we hold.
                std::future::pending::<()>().await;
            }
        }
    }

    fn tell_of(&self, error: &ClientError) {
        let text = excerpt(with_causes(error).as_bytes(), LOG_CHARS);
        let mut is_new = false;
        self.house.status.change(self.resident.name(), |status| {
            is_new = status.error.as_deref() != Some(&text);
            if status.agent.take().is_some() {
                status.since = now();
            }
            status.error = Some(text.clone());
        });
        let guest = self.resident.name();
        // A machine that is not running is nothing to be told about.
        let is_told = is_new && !matches!(error, ClientError::Connect { .. });
        match is_told.then(|| self.resident.log.admit()).flatten() {
            Some(left_out) => warn!(guest, error = text, left_out, "cannot tell the agent"),
            None => debug!(guest, error = text, "cannot tell the agent"),
        }
    }
}

/// What tells this run of a guest from another: its kernel's number where the agent knows it, else
/// the agent's process.
fn boot_of(info: &ServerInfo) -> String {
    match &info.boot_id {
        Some(id) => excerpt(id.as_bytes(), LOG_CHARS),
        None => format!("process {}", info.environment.server_pid),
    }
}

/// The event of a change. One too large for an agent goes without the values.
fn event(change: Change) -> NewEvent {
    let mut metadata = change.metadata;
    if metadata.to_string().len() > limits::MAX_EVENT_BYTES
        && let Some(fields) = metadata.as_object_mut()
    {
        for (_, value) in fields.iter_mut().filter(|(name, _)| name.contains("value")) {
            *value = serde_json::Value::String(String::new());
        }
    }
    NewEvent {
        kind: change.kind.to_owned(),
        metadata,
    }
}

/// Waits until the agent ends what it was asked for, which is when it ends itself.
async fn wait_for_end(presence: Option<&mut Events>) -> Result<(), ClientError> {
    let Some(presence) = presence else {
        return std::future::pending().await;
    };
    while presence.next().await?.is_some() {}
    Ok(())
}

/// An agent that refuses us will still do so in a second.
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
    fn an_event_too_large_goes_without_its_values() {
        let change = |value: String| Change {
            kind: "config",
            metadata: json!({ "key": "user.a", "old_value": "", "value": value }),
        };
        let small = event(change("x".to_owned()));
        assert_eq!(small.metadata["value"], "x");
        let large = event(change("x".repeat(limits::MAX_EVENT_BYTES)));
        assert_eq!(
            large.metadata,
            json!({ "key": "user.a", "old_value": "", "value": "" })
        );
    }

    #[test]
    fn an_agent_that_refuses_is_not_asked_every_second() {
        let refused = ClientError::Agent {
            status: 400,
            text: String::new(),
        };
        let pause = Duration::from_millis(200);
        assert_eq!(pause_after(&refused, pause), limits::REFUSED_PAUSE);
        let lost = ClientError::ConnectionLost {
            during: "x",
            source: None,
        };
        assert_eq!(pause_after(&lost, pause), pause);
    }
}
