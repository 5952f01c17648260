//! Keeps the snapshot up to date with the host.
//!
//! ```text
//! no address of the host ──PUT /1.0──► fetching ──complete──► available ─┐
//!           ▲                            ▲  └─failed: pause─┘            │
//!           └──PUT /1.0, devlxd off──────┴──event, PUT /1.0──────────────┘
//! ```

use std::{future::pending, io, path::PathBuf, sync::Arc, time::Duration};

use futures_util::FutureExt;
use http::{Method, StatusCode};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    select,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::{
    address::{Cid, VsockAddress},
    event::{CONFIG, DEVICE, Event},
    guest_api::INFO,
    host::HostConnection,
};

use crate::{
    defaults,
    events::{Events, Listener},
    http::{
        identity::{self, IdentityError},
        listen::ListenAddress,
    },
    lxd_host::host::Host,
    system::blocking::run_blocking,
};

use super::{
    Availability, CallError, HostApi, InstanceData, SavedSnapshot, changes::ReportedChanges,
    fetch::fetch,
};

/// The task that fetches snapshots from the host.
#[derive(Debug)]
pub(crate) struct Refresher {
    data: InstanceData,
    announced: watch::Receiver<Option<HostConnection>>,
    events: Listener,
    address: Option<ListenAddress>,
    identity: Option<PathBuf>,
    /// The last snapshot on disk, for boots without the host.
    saved: Option<SavedSnapshot>,
    reported: ReportedChanges,
}

/// The action that the last `PUT /1.0` requires.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    Wait,
    Disable,
    Fetch {
        address: ListenAddress,
        /// PEM, or empty.
        certificate: String,
    },
}

impl Refresher {
    /// Fetches `data` from the address of `host`, and again after each of `events`. `address` overrides the
    /// announced one. `identity` is the directory of the agent's identity; without one, the connection may be
    /// plain. Snapshots are saved in `saved`, and served from there until the host replies.
    pub(crate) fn new(
        data: InstanceData,
        host: &Host,
        events: &Events,
        address: Option<ListenAddress>,
        identity: Option<PathBuf>,
        saved: Option<SavedSnapshot>,
    ) -> Self {
        Self {
            data,
            announced: host.watch(),
            events: events.listen(vec![CONFIG.to_owned(), DEVICE.to_owned()]),
            address,
            identity,
            saved,
            reported: ReportedChanges::default(),
        }
    }

    /// Whether data are expected, from the host or saved ones.
    pub(crate) fn expects_data(&self) -> bool {
        if self.saved.as_ref().is_some_and(SavedSnapshot::exists) {
            return true;
        }
        let goal = goal(self.announced.borrow().as_ref(), self.address.as_ref());
        matches!(goal, Goal::Fetch { .. })
    }

    /// Sends one request to `address`. If the host replies within [`defaults::HOST_PROBE_TIMEOUT`], the
    /// address overrides the announced one.
    pub(crate) async fn probe(&mut self, address: ListenAddress) {
        let Ok(tls) = self.tls("") else {
            return;
        };
        let mut client = HostApi::new(address.clone(), tls).client();
        let asked = client.call(Method::GET, INFO, None);
        let answer = timeout(defaults::HOST_PROBE_TIMEOUT, asked).await;
        match answer.unwrap_or(Err(CallError::TimedOut)) {
            Ok(_) => {
                tracing::info!(%address, "the host answers at its default address");
                self.address = Some(address);
            }
            Err(error) => tracing::debug!(%address, %error, "no host at the default address"),
        }
    }

    /// Runs until `stop` is cancelled. Serves the saved data if none have been fetched within
    /// [`defaults::SAVED_DATA_DELAY`].
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (data, saved) = (self.data.clone(), self.saved.clone());
        let fetching = self.fetch_until(stop.clone());
        let fall_back = async {
            sleep(defaults::SAVED_DATA_DELAY).await;
            if let Some(saved) = saved {
                serve_saved(&data, saved).await;
            }
            pending::<()>().await;
        };
        select! {
            () = fetching => {}
            () = fall_back => {}
        }
    }

    async fn fetch_until(self, stop: CancellationToken) {
        let (mut announced, address) = (self.announced.clone(), self.address.clone());
        let mut refresher = self;
        loop {
            let last = goal(announced.borrow_and_update().as_ref(), address.as_ref());
            let another =
                announced.wait_for(|announced| goal(announced.as_ref(), address.as_ref()) != last);
            select! {
                () = refresher.pursue(&last) => {}
                changed = another => if changed.is_err() {
                    return;
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Carries out the goal. Never returns.
    async fn pursue(&mut self, goal: &Goal) {
        match goal {
            Goal::Wait => {}
            Goal::Disable => {
                self.data.set_host(None);
                self.disable().await;
            }
            Goal::Fetch {
                address,
                certificate,
            } => match self.tls(certificate) {
                Ok(tls) => {
                    let host = HostApi::new(address.clone(), tls);
                    self.data.set_host(Some(host.clone()));
                    self.fetch_repeatedly(&host).await;
                }
                Err(error) => tracing::error!(%error, "no usable identity for TLS with the host"),
            },
        }
        // Events have no effect without fetching. They are received, because the event log keeps them until
        // then.
        loop {
            let _ = self.events.next().await;
        }
    }

    /// The TLS configuration, pinned to `certificate` of the host or, if that is empty, to those of the
    /// identity. `None` without either.
    fn tls(&self, certificate: &str) -> Result<Option<Arc<ClientConfig>>, IdentityError> {
        let folder = self.identity.as_deref();
        let hosts = match (certificate, folder) {
            ("", None) => return Ok(None),
            ("", Some(folder)) => identity::host_certificates(folder)?,
            // `Host::set_connection` has checked it.
            (pem, _) => CertificateDer::pem_slice_iter(pem.as_bytes())
                .filter_map(Result::ok)
                .collect(),
        };
        identity::client_config(folder, hosts).map(Some)
    }

    async fn fetch_repeatedly(&mut self, host: &HostApi) {
        let mut pause = defaults::FETCH_PAUSE;
        let mut changes: Vec<Event> = Vec::new();
        loop {
            let fetched = timeout(defaults::FETCH_TIMEOUT, fetch(host))
                .await
                .unwrap_or(Err(CallError::TimedOut));
            let old = self.data.snapshot();
            let fresh = match fetched {
                Ok(snapshot) => {
                    tracing::debug!(?snapshot, "fetched the instance data");
                    self.data.publish(snapshot);
                    self.save_snapshot().await;
                    pause = defaults::FETCH_PAUSE;
                    self.data.snapshot()
                }
                Err(error) => {
                    self.report_failure(&error, pause).await;
                    None
                }
            };
            // Events pursue the snapshot, so that the new value can be read on an event.
            for event in changes.drain(..) {
                if self.reported.host_event(&event.kind, &event.metadata) {
                    self.data.events.publish(&event.kind, event.metadata);
                }
            }
            if let Some(new) = fresh {
                for change in self.reported.snapshot_changes(old.as_deref(), &new) {
                    self.data.events.publish(&change.kind, change.metadata);
                }
                changes = self.next_changes().await;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(defaults::MAX_FETCH_PAUSE);
                changes = self.pending_changes();
            }
        }
    }

    /// Disables the data, and removes the saved ones.
    async fn disable(&self) {
        self.data.state.send_replace(Availability::Disabled);
        if let Some(saved) = self.saved.clone() {
            log_failure(run_blocking(move || saved.remove()).await);
        }
    }

    async fn save_snapshot(&self) {
        if let (Some(saved), Some(snapshot)) = (self.saved.clone(), self.data.snapshot()) {
            let data = self.data.clone();
            log_failure(run_blocking(move || saved.save_if_current(&snapshot, &data)).await);
        }
    }

    async fn report_failure(&self, error: &CallError, pause: Duration) {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        if pause == defaults::FETCH_PAUSE {
            tracing::warn!(%error, cause, "no instance data from the host; trying again");
        } else {
            tracing::debug!(%error, cause, "no instance data from the host");
        }
        if let CallError::Refused { status, .. } = error
            && *status == StatusCode::FORBIDDEN
        {
            self.disable().await;
        }
    }

    /// Waits for a change, and collects further ones within [`defaults::FETCH_PAUSE`].
    async fn next_changes(&mut self) -> Vec<Event> {
        let first = select! {
            // If events were lost, there is a change without an event.
            event = self.events.next() => event.ok().and_then(|text| parse(&text)),
            announced = self.announced.changed() => match announced {
                Ok(()) => None,
                Err(_) => return pending().await,
            },
        };
        sleep(defaults::FETCH_PAUSE).await;
        let mut changes: Vec<Event> = first.into_iter().collect();
        changes.append(&mut self.pending_changes());
        changes
    }

    fn pending_changes(&mut self) -> Vec<Event> {
        let mut changes = Vec::new();
        while let Some(events) = self.events.next().now_or_never() {
            changes.extend(events.ok().and_then(|text| parse(&text)));
        }
        changes
    }
}

fn log_failure(done: io::Result<io::Result<()>>) {
    if let Err(error) = done.flatten() {
        tracing::warn!(%error, "cannot save the instance data for a boot without the host");
    }
}

/// Serves the saved data if the availability is unknown.
async fn serve_saved(data: &InstanceData, saved: SavedSnapshot) {
    if !matches!(*data.watch().borrow(), Availability::Unknown) {
        return;
    }
    let loaded = run_blocking(move || saved.load()).await;
    match loaded.flatten() {
        Ok(Some(snapshot)) => {
            if data.publish_if_unknown(snapshot.marked_as_saved()) {
                tracing::warn!(
                    "the host does not answer: using the instance data of an earlier boot"
                );
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot read the instance data of an earlier boot"),
    }
}

fn parse(event: &str) -> Option<Event> {
    serde_json::from_str(event).ok()
}

fn goal(announced: Option<&HostConnection>, address: Option<&ListenAddress>) -> Goal {
    match (announced, address) {
        (None, None) => Goal::Wait,
        (None, Some(address)) => Goal::Fetch {
            address: address.clone(),
            certificate: String::new(),
        },
        (Some(announced), _) if !announced.devlxd => Goal::Disable,
        (Some(announced), address) => Goal::Fetch {
            address: address.cloned().unwrap_or_else(|| vsock_address(announced)),
            certificate: announced.certificate.clone(),
        },
    }
}

fn vsock_address(announced: &HostConnection) -> ListenAddress {
    // A host without a known context id sends 0 or `VMADDR_CID_ANY`.
    let cid = match Cid(announced.cid) {
        Cid::ANY | Cid(0) => Cid::HOST,
        cid => cid,
    };
    ListenAddress::Vsock(VsockAddress {
        cid,
        port: announced.port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(cid: u32, devlxd: bool) -> HostConnection {
        let (cid, port) = (Cid(cid), 1024);
        let mut announced = HostConnection::new(VsockAddress { cid, port });
        announced.certificate = "pem".to_owned();
        announced.devlxd = devlxd;
        announced
    }

    fn fetch_from(address: &str, certificate: &str) -> Goal {
        Goal::Fetch {
            address: address.parse().unwrap(),
            certificate: certificate.to_owned(),
        }
    }

    #[test]
    fn data_are_fetched_from_the_announced_address() {
        let goal = |cid| goal(Some(&announced(cid, true)), None);
        assert_eq!(goal(7), fetch_from("vsock:7:1024", "pem"));
        for unknown in [0, u32::MAX] {
            assert_eq!(goal(unknown), fetch_from("vsock:2:1024", "pem"));
        }
    }

    #[test]
    fn a_configured_address_overrides_the_announced_one_but_not_devlxd() {
        let address = "unix:/x".parse().unwrap();
        let goal = |announced: Option<&HostConnection>| goal(announced, Some(&address));
        assert_eq!(goal(None), fetch_from("unix:/x", ""));
        assert_eq!(
            goal(Some(&announced(2, true))),
            fetch_from("unix:/x", "pem")
        );
        assert_eq!(goal(Some(&announced(2, false))), Goal::Disable);
    }

    #[test]
    fn nothing_is_fetched_before_an_address_is_known() {
        assert_eq!(goal(None, None), Goal::Wait);
        assert_eq!(goal(Some(&announced(2, false)), None), Goal::Disable);
    }
}
