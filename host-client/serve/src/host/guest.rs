//! A served guest: its identity, its instance data, and the state that it reported.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, task::spawn_blocking, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    GuestTls, HostState, limits,
    log_limit::LogLimit,
    progress::{GuestReport, Progress},
};
use vsock_agent_client::{Endpoint, Security};
use vsock_agent_protocol::{guest_api::GuestState, printable::with_causes};

use crate::instance::{GuestView, Stamp, StoreError};

/// A guest to serve. Guests are equal if all fields are.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    /// Its name, which is also the name of its instance data.
    pub name: String,
    /// The address of its agent. The guest's own connections come from the same machine.
    pub endpoint: Endpoint,
    /// TLS or not, on connections to its agent.
    pub security: Security,
    /// Certificates for its connections to the host. `None`: it is identified by its address alone.
    pub tls: Option<GuestTls>,
    /// Versions of the files that all this was read from.
    pub revision: Vec<Option<Stamp>>,
}

/// A guest that is served.
#[derive(Debug)]
pub(super) struct ServedGuest {
    pub(super) spec: Guest,
    /// Its instance data; `None` until it is read.
    view: watch::Sender<Option<Arc<GuestView>>>,
    progress: Mutex<Progress>,
    /// Limit of the log lines that it causes.
    pub(super) log: LogLimit,
    /// Cancelled when the guest is removed or replaced.
    pub(super) stop: CancellationToken,
}

impl ServedGuest {
    pub(super) fn new(spec: Guest, progress: Progress, stop: CancellationToken) -> Self {
        Self {
            spec,
            view: watch::Sender::new(None),
            progress: Mutex::new(progress),
            log: LogLimit::new(),
            stop,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The guest's current data.
    pub(super) fn view(&self) -> Option<Arc<GuestView>> {
        self.view.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<GuestView>>> {
        self.view.subscribe()
    }

    pub(super) fn state(&self) -> GuestState {
        self.progress().report().state
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the state that the guest reported.
    pub(super) fn set_state(&self, host: &HostState, state: GuestState) {
        let report = GuestReport {
            state,
            said_at: Some(now()),
        };
        self.change(host, |progress| progress.set_report(report));
    }

    /// Records that the agent was reached in this boot of the guest.
    pub(super) fn agent_connected(&self, host: &HostState, boot: String) {
        self.change(host, |progress| progress.agent_connected(boot));
    }

    /// Records that the connection to the agent was lost.
    pub(super) fn agent_lost(&self, host: &HostState) {
        self.change(host, Progress::agent_lost);
    }

    fn change(&self, host: &HostState, change: impl FnOnce(&mut Progress)) {
        let (before, after) = {
            let mut progress = self.progress();
            let before = progress.report().state;
            change(&mut progress);
            (before, progress.clone())
        };
        let report = after.report();
        if before != report.state
            && let Some(left_out) = self.log.admit()
        {
            let (guest, state) = (self.name(), report.state.name());
            info!(guest, state, left_out, "guest state");
        }
        host.status.change(self.name(), |status| {
            // Repeating the same state does not rewrite the status file.
            if status.guest.state != report.state || status.ready_in != after.ready_in {
                status.guest = report;
                status.ready_in = after.ready_in;
            }
        });
    }

    /// Reads the instance's file whenever it changes, until this guest is no longer served.
    /// `seen` is the version that was read last.
    pub(super) async fn watch_file(&self, host: Arc<HostState>, mut seen: Option<Stamp>) {
        let mut poll = interval(limits::POLL_INTERVAL);
        loop {
            tokio::select! {
                _ = poll.tick() => seen = self.reload(&host, seen).await,
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Reads the instance's file unless its version is `seen`. Returns its version.
    pub(super) async fn reload(&self, host: &Arc<HostState>, seen: Option<Stamp>) -> Option<Stamp> {
        // Before the file is read: a change in between is noticed at the next poll.
        let stamp = Stamp::of(&host.store.path(self.name()));
        // A missing file is created.
        if stamp.is_some() && stamp == seen {
            return seen;
        }
        let (own, name) = (Arc::clone(host), self.name().to_owned());
        let loaded = spawn_blocking(move || {
            let is_registered = || (own.is_registered)(&name);
            let instance = own.store.load_or_create_if(&name, is_registered)?;
            Ok::<_, StoreError>(instance.map(|instance| GuestView::of(&instance)))
        });
        match loaded.await {
            Ok(Ok(Some(view))) => self.publish(view),
            // The virtual machine was removed from the configuration.
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                let error = with_causes(&error);
                error!(guest = self.name(), error, "cannot use its instance data");
            }
            Err(error) => warn!(guest = self.name(), %error, "reading its instance data failed"),
        }
        stamp
    }

    /// Publishes the data if it changed.
    fn publish(&self, view: GuestView) {
        self.view.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(&view);
            if is_new {
                let keys = view.config.len();
                info!(guest = self.name(), keys, "instance data loaded");
                *known = Some(Arc::new(view));
            }
            is_new
        });
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
