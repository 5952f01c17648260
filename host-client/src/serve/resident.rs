//! A guest that is served: who it is, what it may see, and what it said of itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::spawn_blocking, time::interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{GuestTls, House, limits};
use crate::{
    Endpoint, Security,
    error::with_causes,
    instance::{GuestView, Stamp},
    protocol::guest_api::GuestState,
};

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

/// What a guest said of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// How far it is.
    pub state: GuestState,
    /// When it said so, in seconds since 1970, if it ever did.
    pub said_at: Option<u64>,
}

/// A guest that is served.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) guest: Guest,
    /// What it may see; `None` as long as its data cannot be read.
    view: watch::Sender<Option<Arc<GuestView>>>,
    report: Mutex<GuestReport>,
    /// Cancelled when it is no longer served, or is another one.
    pub(super) stop: CancellationToken,
}

impl Resident {
    pub(super) fn new(guest: Guest, report: GuestReport, stop: CancellationToken) -> Self {
        Self {
            guest,
            view: watch::Sender::new(None),
            report: Mutex::new(report),
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
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .state
    }

    /// The guest says how far it is.
    pub(super) fn says(&self, house: &House, state: GuestState) {
        let report = GuestReport {
            state,
            said_at: Some(now()),
        };
        let before = {
            let mut known = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, report)
        };
        if before.state != state {
            info!(
                guest = self.name(),
                state = state.name(),
                "the guest says how far it is"
            );
            house
                .status
                .change(self.name(), |status| status.guest = report);
        }
    }

    /// Reads the instance's file whenever it changes, until this guest is no longer served.
    /// `seen` is the version that was read last.
    pub(super) async fn read_data(&self, house: &House, mut seen: Option<Stamp>) {
        let mut look = interval(limits::LOOK_INTERVAL);
        loop {
            tokio::select! {
                _ = look.tick() => seen = self.look(house, seen).await,
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Reads the instance's file if it is not the version that was `seen`; tells the one it is.
    pub(super) async fn look(&self, house: &House, seen: Option<Stamp>) -> Option<Stamp> {
        // Before the file is read: a change in between is seen at the next look.
        let stamp = Stamp::of(&house.store.path(self.name()));
        // A file that is not there will be made.
        if stamp.is_some() && stamp == seen {
            return seen;
        }
        let (store, name) = (house.store.clone(), self.name().to_owned());
        let loaded = spawn_blocking(move || {
            let instance = store.load_or_create(&name);
            instance.map(|instance| GuestView::of(&instance))
        });
        match loaded.await {
            Ok(Ok(view)) => self.show(view),
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
