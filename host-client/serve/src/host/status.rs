//! What is known of the guests, in a file that others can read.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    limits,
    progress::{GuestReport, Progress},
    resident::now,
};
use vsock_agent_client::Endpoint;
use vsock_agent_files::write_whole;
use vsock_agent_protocol::printable::{LOG_CHARS, excerpt};

/// What a host process knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Its process id.
    pub pid: u32,
    /// The port guests ask at.
    pub port: u32,
    /// Its guests, by name.
    pub guests: BTreeMap<String, AgentReport>,
}

/// What it knows of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Where the agent is.
    pub endpoint: String,
    /// What the guest said of itself.
    pub guest: GuestReport,
    /// The run of the guest in which it said that it is ready, if its agent was reached in it.
    #[serde(default)]
    pub ready_in: Option<String>,
    /// Name and version of the agent, once it was told where its host is; `None` while it is not
    /// reachable.
    pub agent: Option<String>,
    /// Since when that is so, in seconds since 1970.
    pub since: u64,
    /// Why the agent could not be told.
    pub error: Option<String>,
}

/// The file. Written a moment after a change, by [`StatusFile::keep`].
#[derive(Debug)]
pub(super) struct StatusFile {
    path: PathBuf,
    report: Mutex<StatusReport>,
    changed: Notify,
}

impl StatusFile {
    /// Goes on with what an earlier process knew.
    pub(super) fn new(path: PathBuf, port: u32) -> Self {
        let old = StatusReport::read(&path).unwrap_or_default();
        Self {
            path,
            report: Mutex::new(StatusReport {
                pid: std::process::id(),
                port,
                ..old
            }),
            changed: Notify::new(),
        }
    }

    /// A guest is served from now on. Says how far it was.
    pub(super) fn begin(&self, name: &str, endpoint: &Endpoint) -> Progress {
        let endpoint = endpoint.to_string();
        let mut report = self.report();
        let guest = report.guests.entry(name.to_owned()).or_default();
        let (said, ready_in) = (guest.guest, guest.ready_in.take());
        *guest = AgentReport {
            endpoint,
            guest: said,
            ready_in: ready_in.clone(),
            since: now(),
            ..AgentReport::default()
        };
        self.changed.notify_one();
        Progress::new(said, ready_in)
    }

    /// Forgets every guest but these.
    pub(super) fn retain(&self, is_served: impl Fn(&str) -> bool) {
        self.report().guests.retain(|name, _| is_served(name));
        self.changed.notify_one();
    }

    pub(super) fn change(&self, name: &str, change: impl FnOnce(&mut AgentReport)) {
        let mut report = self.report();
        if let Some(guest) = report.guests.get_mut(name) {
            let before = guest.clone();
            change(guest);
            if *guest != before {
                self.changed.notify_one();
            }
        }
    }

    fn report(&self) -> MutexGuard<'_, StatusReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file after each change, until the end.
    pub(super) async fn keep(&self, stop: &CancellationToken) {
        loop {
            let is_over = tokio::select! {
                () = self.changed.notified() => false,
                () = stop.cancelled() => true,
            };
            let text = serde_json::to_vec_pretty(&*self.report()).unwrap_or_default();
            // Small, and rare: not worth a thread.
            if let Err(error) = write_whole(&self.path, &text, 0o600) {
                warn!(path = %self.path.display(), %error, "cannot write the status");
            }
            if is_over {
                return;
            }
            // A guest must not keep the disk busy.
            tokio::select! {
                () = sleep(limits::LOOK_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

impl StatusReport {
    /// Reads what a host process wrote last; `None` if there is nothing to be read. What guests have a
    /// say in is short and fit to be shown, whoever wrote the file.
    #[must_use]
    pub fn read(path: &std::path::Path) -> Option<Self> {
        let text = std::fs::read(path).ok()?;
        let mut report: Self = serde_json::from_slice(&text).ok()?;
        for guest in report.guests.values_mut() {
            let texts = [&mut guest.agent, &mut guest.error, &mut guest.ready_in];
            for text in texts.into_iter().flatten() {
                *text = excerpt(text.as_bytes(), LOG_CHARS);
            }
        }
        Some(report)
    }
}
