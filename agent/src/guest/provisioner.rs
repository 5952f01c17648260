//! Provisions the guest when instance data arrive: writes cloud-init's seed, opens the guest API and the
//! metadata services, makes cloud-init detect its datasource again, and lets the boot continue.

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
use vsock_agent_metadata::Instance as _;

use crate::{
    config::{CloudInit, GuestConfig},
    defaults,
    guest::{
        cloud_init::{self, Datasource, Outcome, RedetectError, Seed},
        guest_api::{GuestApi, OpenSockets},
        instance_data::{Availability, Snapshot},
        metadata::{MetadataServices, OpenServices},
    },
    lxd_host::config_share::Applied,
    system::blocking::run_blocking,
};

/// User-data for an instance without any: cloud-init requires the file.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// Provisions the guest from the instance data.
#[derive(Debug)]
pub(crate) struct Provisioner {
    api: Arc<GuestApi>,
    metadata: MetadataServices,
    config: GuestConfig,
    root: PathBuf,
    applied: Applied,
    availability: watch::Receiver<Availability>,
    stage: watch::Sender<Stage>,
    is_released: Arc<AtomicBool>,
    sockets: Option<OpenSockets>,
    open_metadata: Option<OpenServices>,
}

/// Progress of the provisioning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The config share has a seed, and cloud-init's detection runs for it.
    Seeded,
    /// There are no data yet.
    Waiting,
    /// There are data, and cloud-init's detection runs.
    Known,
    /// The data are served, or the host has disabled them.
    Settled,
}

impl Provisioner {
    /// Serves the data of `availability` by `api` and `metadata`. `root` is the guest's `/`, `applied` the effect of
    /// the config share.
    pub(crate) fn new(
        api: Arc<GuestApi>,
        metadata: MetadataServices,
        config: GuestConfig,
        root: PathBuf,
        applied: Applied,
        availability: watch::Receiver<Availability>,
    ) -> Self {
        let stage = if applied.wrote_seed {
            Stage::Seeded
        } else {
            Stage::Waiting
        };
        Self {
            api,
            metadata,
            config,
            root,
            applied,
            availability,
            stage: watch::Sender::new(stage),
            is_released: Arc::default(),
            sockets: None,
            open_metadata: None,
        }
    }

    /// Watches the progress.
    pub(crate) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// To be set when the boot continues: the machine is not rebooted after that.
    pub(crate) fn is_released(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_released)
    }

    /// Runs until `stop` is cancelled, then closes the sockets.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        // cloud-init would prefer the seed of an earlier configuration to the data. During the boot it may be
        // in use, so it is removed when the agent stops.
        let has_old_seed = self.config.cloud_init != CloudInit::NoCloud
            && !self.applied.image_has_seed_templates
            && cloud_init::has_own_seed(&self.root);
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
        let removed = run_blocking(move || cloud_init::remove_own_seed(&root)).await;
        match removed.flatten() {
            Ok(()) => tracing::info!("removed cloud-init's seed of an earlier configuration"),
            Err(error) => tracing::error!(%error, "cannot remove cloud-init's seed"),
        }
    }

    async fn serve_until(&mut self, stop: CancellationToken) {
        if self.applied.wrote_seed {
            let meta_data = cloud_init::seeded_meta_data(&self.root);
            if self.redetect(Datasource::NoCloud, &meta_data).await {
                return stop.cancelled().await;
            }
            self.stage.send_replace(Stage::Waiting);
        }
        loop {
            let availability = self.availability.borrow_and_update().clone();
            match availability {
                Availability::Unknown => {}
                Availability::Disabled => {
                    self.sockets = None;
                    self.open_metadata = None;
                    self.stage.send_replace(Stage::Settled);
                }
                Availability::Available(snapshot) => {
                    if self.serve(snapshot).await {
                        return stop.cancelled().await;
                    }
                }
            }
            select! {
                changed = self.availability.changed() => if changed.is_err() {
                    return;
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Makes the data available in the guest. True if the machine reboots for cloud-init.
    async fn serve(&mut self, snapshot: Arc<Snapshot>) -> bool {
        let is_ours = !self.applied.image_has_seed_templates;
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
        self.metadata.log_unsupported_keys(&snapshot);
        if self.open_metadata.is_none() {
            self.open_metadata = Some(self.metadata.open().await);
        }
        if *self.stage.borrow() == Stage::Waiting {
            self.stage.send_replace(Stage::Known);
            let datasource = match self.config.cloud_init {
                CloudInit::NoCloud => Datasource::NoCloud,
                CloudInit::Lxd | CloudInit::Off => Datasource::Lxd,
            };
            if self.redetect(datasource, &snapshot.meta_data).await {
                return true;
            }
            self.stage.send_replace(Stage::Settled);
        }
        false
    }

    async fn write_seed(&self, snapshot: Arc<Snapshot>) {
        let root = self.root.clone();
        let written = run_blocking(move || cloud_init::write(&root, &seed(&snapshot))).await;
        if let Err(error) = written.flatten() {
            tracing::error!(%error, "cannot write cloud-init's seed");
        }
    }

    /// Makes cloud-init detect its datasource again. True if the machine reboots for that: the boot must not
    /// continue then.
    async fn redetect(&self, datasource: Datasource, meta_data: &str) -> bool {
        if self.config.cloud_init == CloudInit::Off {
            return false;
        }
        self.redetect_or_reboot(datasource, meta_data)
            .await
            .unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "cannot make cloud-init detect its datasource again");
                false
            })
    }

    async fn redetect_or_reboot(
        &self,
        datasource: Datasource,
        meta_data: &str,
    ) -> Result<bool, RedetectError> {
        let outcome = cloud_init::redetect(&self.root, datasource).await?;
        if !self.config.cloud_init_reboot {
            return Ok(false);
        }
        match outcome {
            Outcome::Detecting => cloud_init::record_in_time(&self.root).map(|()| false),
            Outcome::TooLate if !self.is_released.load(Ordering::Acquire) => {
                cloud_init::reboot(&self.root, meta_data).await
            }
            Outcome::TooLate | Outcome::Unchanged => Ok(false),
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

/// Waits until the boot may continue: there are data, or `limit` has passed. Waits for cloud-init's
/// detection, too, if there is a seed or the data came in time, but [`defaults::PROVISION_TIMEOUT`] longer at
/// most.
pub(crate) async fn wait_until_ready(mut stage: watch::Receiver<Stage>, limit: Duration) {
    let end = Instant::now() + limit + defaults::PROVISION_TIMEOUT;
    let detected = stage.wait_for(|stage| *stage != Stage::Seeded);
    let _ = timeout_at(end, detected).await;
    let availability = stage.wait_for(|stage| matches!(stage, Stage::Known | Stage::Settled));
    let is_in_time = timeout(limit, availability).await.is_ok();
    if is_in_time {
        let settled = stage.wait_for(|stage| *stage == Stage::Settled);
        let _ = timeout_at(end, settled).await;
    } else if !limit.is_zero() {
        tracing::warn!(
            ?limit,
            "no instance data in time: the boot continues without them"
        );
    }
}
