//! The status file: the state of all guests, for other programs to read.

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
    guest::now,
    limits,
    progress::{GuestReport, Progress},
};
use vsock_agent_client::Endpoint;
use vsock_agent_files::write_whole;
use vsock_agent_protocol::printable::{LOG_CHARS, excerpt};

/// The status of a host process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Its process id.
    pub pid: u32,
    /// The port that it listens on.
    pub port: u32,
    /// Its guests, by name.
    pub guests: BTreeMap<String, AgentReport>,
}

/// The status of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// The address of its agent.
    pub endpoint: String,
    /// The state that the guest reported.
    pub guest: GuestReport,
    /// The boot in which the guest reported that it is ready, if its agent was reached in it.
    #[serde(default)]
    pub ready_in: Option<String>,
    /// Name and version of the agent, once it has the address of its host; `None` while it is not
    /// reachable.
    pub agent: Option<String>,
    /// Time of the last change of `agent` between some and none, in seconds since 1970.
    pub since: u64,
    /// Why the agent could not be reached.
    pub error: Option<String>,
}

/// The file. [`StatusFile::write_changes`] writes it soon after a change.
#[derive(Debug)]
pub(super) struct StatusFile {
    path: PathBuf,
    report: Mutex<StatusReport>,
    changed: Notify,
}

impl StatusFile {
    /// Starts from the file of an earlier process, if there is one.
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

    /// Adds a guest. Returns its state as an earlier process stored it.
    pub(super) fn start_guest(&self, name: &str, endpoint: &Endpoint) -> Progress {
        let endpoint = endpoint.to_string();
        let mut report = self.report();
        let guest = report.guests.entry(name.to_owned()).or_default();
        let (reported, ready_in) = (guest.guest, guest.ready_in.take());
        *guest = AgentReport {
            endpoint,
            guest: reported,
            ready_in: ready_in.clone(),
            since: now(),
            ..AgentReport::default()
        };
        self.changed.notify_one();
        Progress::new(reported, ready_in)
    }

    /// Removes every guest that is not served.
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

    /// Writes the file after each change, until `stop`.
    pub(super) async fn write_changes(&self, stop: &CancellationToken) {
        loop {
            let is_over = tokio::select! {
                () = self.changed.notified() => false,
                () = stop.cancelled() => true,
            };
            let text = serde_json::to_vec_pretty(&*self.report()).unwrap_or_default();
            // Blocks the task only briefly: the file is small.
            if let Err(error) = write_whole(&self.path, &text, 0o600) {
                warn!(path = %self.path.display(), %error, "cannot write the status");
            }
            if is_over {
                return;
            }
            // Limits the rate of writes, whatever the guests report.
            tokio::select! {
                () = sleep(limits::POLL_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

impl StatusReport {
    /// Reads a status file; `None` if there is none, or it cannot be parsed. Text that guests control
    /// is shortened and made printable.
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
