//! What happens in the guest when instance data come: seeds, sockets, services, a kick for cloud-init, and the
//! word that the guest may go on. The one place that has all of those rooms.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    select,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{CloudInit, GuestConfig},
    defaults,
    guest::{
        cloud_init::{self, Datasource, KickError, Outcome, Seed},
        guest_api::{GuestApi, OpenSockets},
        instance_data::{Availability, Snapshot},
        presets::{OpenPresets, Presets},
    },
    lxd_host::config_share::Applied,
    system::blocking::run_blocking,
};

/// User-data that say nothing: cloud-init wants some.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// The guest's side of the instance data.
#[derive(Debug)]
pub(crate) struct GuestSide {
    api: Arc<GuestApi>,
    presets: Presets,
    config: GuestConfig,
    root: PathBuf,
    applied: Applied,
    known: watch::Receiver<Availability>,
    stage: watch::Sender<Stage>,
    has_gone_on: Arc<AtomicBool>,
    sockets: Option<OpenSockets>,
    open_presets: Option<OpenPresets>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The config share had a seed; cloud-init is being told.
    Seeded,
    /// There are no data yet.
    Waiting,
    /// There are data, or none will come; cloud-init is being told.
    Known,
    /// All is done.
    Settled,
}

impl GuestSide {
    /// The side of a guest that reads from `known` through `api` and `presets`, with its `/` in `root`,
    /// and with what the config share has brought already.
    pub(crate) fn new(
        api: Arc<GuestApi>,
        presets: Presets,
        config: GuestConfig,
        root: PathBuf,
        applied: Applied,
        known: watch::Receiver<Availability>,
    ) -> Self {
        let stage = if applied.has_seed {
            Stage::Seeded
        } else {
            Stage::Waiting
        };
        Self {
            api,
            presets,
            config,
            root,
            applied,
            known,
            stage: watch::Sender::new(stage),
            has_gone_on: Arc::default(),
            sockets: None,
            open_presets: None,
        }
    }

    /// How far it is, now and later.
    pub(crate) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// To be set when the guest goes on: nothing may hold it up any more, nor take it down.
    pub(crate) fn has_gone_on(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.has_gone_on)
    }

    /// Goes on until `stop` is cancelled, and takes the sockets away then.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        // The seed of an earlier configuration would hide the data from cloud-init for ever. While
        // the guest boots, cloud-init may have read it already, and it goes when the agent stops.
        let has_old_seed = self.config.cloud_init != CloudInit::NoCloud
            && !self.applied.is_seeded
            && cloud_init::is_own_there(&self.root);
        if has_old_seed && cloud_init::is_boot_over(&self.root).await.unwrap_or(false) {
            self.remove_seed().await;
        }
        self.serve_until(stop).await;
        if has_old_seed {
            self.remove_seed().await;
        }
    }

    async fn remove_seed(&self) {
        let root = self.root.clone();
        let removed = run_blocking(move || cloud_init::remove_own(&root)).await;
        match removed.flatten() {
            Ok(()) => tracing::info!("removed cloud-init's seed of an earlier configuration"),
            Err(error) => tracing::error!(%error, "cannot remove cloud-init's seed"),
        }
    }

    async fn serve_until(&mut self, stop: CancellationToken) {
        if self.applied.has_seed {
            let meta_data = cloud_init::seeded_meta_data(&self.root);
            if self.kick(Datasource::NoCloud, &meta_data).await {
                return stop.cancelled().await;
            }
            self.stage.send_replace(Stage::Waiting);
        }
        loop {
            let known = self.known.borrow_and_update().clone();
            match known {
                Availability::Unknown => {}
                Availability::Off => {
                    self.sockets = None;
                    self.open_presets = None;
                    self.stage.send_replace(Stage::Settled);
                }
                Availability::Here(snapshot) => {
                    if self.serve(snapshot).await {
                        return stop.cancelled().await;
                    }
                }
            }
            select! {
                changed = self.known.changed() => if changed.is_err() {
                    return;
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Gives the guest its data. True if the machine reboots for them.
    async fn serve(&mut self, snapshot: Arc<Snapshot>) -> bool {
        let is_ours = !self.applied.is_seeded;
        if self.config.cloud_init == CloudInit::NoCloud && is_ours {
            self.write_seed(Arc::clone(&snapshot)).await;
        }
        if self.sockets.is_none() {
            match self.api.open(&self.config.sockets).await {
                Ok(sockets) => self.sockets = Some(sockets),
                Err((path, error)) => {
                    let path = path.display();
                    tracing::error!(%path, %error, "cannot serve instance data");
                }
            }
        }
        self.presets.tell_losses(&snapshot);
        if self.open_presets.is_none() {
            self.open_presets = Some(self.presets.open().await);
        }
        if *self.stage.borrow() == Stage::Waiting {
            self.stage.send_replace(Stage::Known);
            let wanted = match self.config.cloud_init {
                CloudInit::NoCloud => Datasource::NoCloud,
                CloudInit::Lxd | CloudInit::Off => Datasource::Lxd,
            };
            if self.kick(wanted, &snapshot.meta_data).await {
                return true;
            }
            self.stage.send_replace(Stage::Settled);
        }
        false
    }

    async fn write_seed(&self, snapshot: Arc<Snapshot>) {
        let root = self.root.clone();
        let written = run_blocking(move || cloud_init::write(&root, &seed(&snapshot))).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot write cloud-init's seed"),
            Err(error) => tracing::error!(%error, "cannot write cloud-init's seed"),
        }
    }

    /// Has cloud-init look for its data. True if the machine reboots for that: nothing else is to
    /// happen then, and the guest is not to go on.
    async fn kick(&self, wanted: Datasource, meta_data: &str) -> bool {
        if self.config.cloud_init == CloudInit::Off {
            return false;
        }
        self.look_or_reboot(wanted, meta_data)
            .await
            .unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "cloud-init does not look again");
                false
            })
    }

    async fn look_or_reboot(&self, wanted: Datasource, meta_data: &str) -> Result<bool, KickError> {
        let outcome = cloud_init::kick(&self.root, wanted).await?;
        if !self.config.cloud_init_reboot {
            return Ok(false);
        }
        match outcome {
            Outcome::Looks => cloud_init::in_time(&self.root).map(|()| false),
            Outcome::Late if !self.has_gone_on.load(Ordering::Acquire) => {
                cloud_init::reboot(&self.root, meta_data).await
            }
            Outcome::Late | Outcome::Left => Ok(false),
        }
    }
}

fn seed(snapshot: &Snapshot) -> Seed<'_> {
    Seed {
        meta_data: &snapshot.meta_data,
        user_data: snapshot.cloud_init("user-data").unwrap_or(NO_USER_DATA),
        vendor_data: snapshot.cloud_init("vendor-data"),
        network_config: snapshot.cloud_init("network-config"),
    }
}

/// Waits until the guest may go on: the data are there, or `limit` has passed. Whatever cloud-init is
/// to be told, by a seed or by data that came in time, it is told first; all of that within
/// [`defaults::SETTLE_TIMEOUT`] more.
pub(crate) async fn wait_until_ready(mut stage: watch::Receiver<Stage>, limit: Duration) {
    let end = Instant::now() + limit + defaults::SETTLE_TIMEOUT;
    let told = stage.wait_for(|stage| *stage != Stage::Seeded);
    let _ = timeout_at(end, told).await;
    let known = stage.wait_for(|stage| matches!(stage, Stage::Known | Stage::Settled));
    let is_in_time = timeout(limit, known).await.is_ok();
    if is_in_time {
        let settled = stage.wait_for(|stage| *stage == Stage::Settled);
        let _ = timeout_at(end, settled).await;
    } else if !limit.is_zero() {
        tracing::warn!(
            ?limit,
            "no instance data in time: the guest goes on without"
        );
    }
}
