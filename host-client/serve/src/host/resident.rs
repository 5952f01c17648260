//! A guest that is served: who it is, what it may see, and what it said of itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, task::spawn_blocking, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    GuestTls, House, limits,
    log_limit::LogLimit,
    progress::{GuestReport, Progress},
};
use vsock_agent_client::{Endpoint, Security};
use vsock_agent_protocol::{guest_api::GuestState, printable::with_causes};

use crate::instance::{GuestView, Stamp, StoreError};

/// A guest to serve. Two are equal if everything is: another identity makes it another guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Guest {
    /// Its name, which its data is found by.
    pub name: String,
    /// Where its agent is; the guest comes to us from the same place.
    pub endpoint: Endpoint,
    /// How its agent is spoken to.
    pub security: Security,
    /// What both ends know each other by when it asks. `None` is for guests that are known by where
    /// they come from alone.
    pub tls: Option<GuestTls>,
    /// The files all this is from. Others make it another guest.
    pub revision: Vec<Option<Stamp>>,
}

/// A guest that is served.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) guest: Guest,
    /// What it may see; `None` as long as its data cannot be read.
    view: watch::Sender<Option<Arc<GuestView>>>,
    progress: Mutex<Progress>,
    /// What it has said in the log.
    pub(super) log: LogLimit,
    /// Cancelled when it is no longer served, or is another one.
    pub(super) stop: CancellationToken,
}

impl Resident {
    pub(super) fn new(guest: Guest, progress: Progress, stop: CancellationToken) -> Self {
        Self {
            guest,
            view: watch::Sender::new(None),
            progress: Mutex::new(progress),
            log: LogLimit::new(),
            stop,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.guest.name
    }

    /// What the guest may see now.
    pub(super) fn view(&self) -> Option<Arc<GuestView>> {
        self.view.borrow().clone()
    }

    /// To hear of changes.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<GuestView>>> {
        self.view.subscribe()
    }

    pub(super) fn state(&self) -> GuestState {
        self.progress().report().state
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest says how far it is.
    pub(super) fn says(&self, house: &House, state: GuestState) {
        let report = GuestReport {
            state,
            said_at: Some(now()),
        };
        self.change(house, |progress| progress.says(report));
    }

    /// Its agent was reached in this run of the guest.
    pub(super) fn is_reached(&self, house: &House, boot: String) {
        self.change(house, |progress| progress.is_reached(boot));
    }

    /// Its agent was reached, and is not any more.
    pub(super) fn is_lost(&self, house: &House) {
        self.change(house, Progress::is_lost);
    }

    fn change(&self, house: &House, change: impl FnOnce(&mut Progress)) {
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
            info!(guest, state, left_out, "how far the guest is");
        }
        house.status.change(self.name(), |status| {
            // A guest that repeats itself does not keep the disk busy.
            if status.guest.state != report.state || status.ready_in != after.ready_in {
                status.guest = report;
                status.ready_in = after.ready_in;
            }
        });
    }

    /// Reads the instance's file whenever it changes, until this guest is no longer served.
    /// `seen` is the version that was read last.
    pub(super) async fn read_data(&self, house: Arc<House>, mut seen: Option<Stamp>) {
        let mut look = interval(limits::LOOK_INTERVAL);
        loop {
            tokio::select! {
                _ = look.tick() => seen = self.look(&house, seen).await,
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Reads the instance's file if it is not the version that was `seen`; tells the one it is.
    pub(super) async fn look(&self, house: &Arc<House>, seen: Option<Stamp>) -> Option<Stamp> {
        // Before the file is read: a change in between is seen at the next look.
        let stamp = Stamp::of(&house.store.path(self.name()));
        // A file that is not there will be made.
        if stamp.is_some() && stamp == seen {
            return seen;
        }
        let (own, name) = (Arc::clone(house), self.name().to_owned());
        let loaded = spawn_blocking(move || {
            let is_wanted = || (own.is_registered)(&name);
            let instance = own.store.load_or_create_if(&name, is_wanted)?;
            Ok::<_, StoreError>(instance.map(|instance| GuestView::of(&instance)))
        });
        match loaded.await {
            Ok(Ok(Some(view))) => self.show(view),
            // It was removed, and is not served for long.
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                let error = with_causes(&error);
                error!(guest = self.name(), error, "its data cannot be used");
            }
            Err(error) => warn!(guest = self.name(), %error, "reading its data broke off"),
        }
        stamp
    }

    fn show(&self, view: GuestView) {
        self.view.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(&view);
            if is_new {
                info!(guest = self.name(), keys = view.config.len(), "its data");
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
