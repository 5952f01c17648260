//! Keeps the snapshot what the host has.
//!
//! ```text
//! nobody says where the host is ──PUT /1.0──► fetching ──complete──► here ─┐
//!              ▲                                ▲  └─failed: pause─┘       │
//!              └──PUT /1.0, devlxd off──────────┴──event, PUT /1.0────────┘
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
        listen::ListenAddress,
        tls::{self, IdentityError},
    },
    lxd_host::host::Host,
    system::blocking::run_blocking,
};

use super::{Availability, CallError, HostApi, InstanceData, Kept, changes::Told, fetch::fetch};

/// The task that does it.
#[derive(Debug)]
pub(crate) struct Refresher {
    data: InstanceData,
    said: watch::Receiver<Option<HostConnection>>,
    heard: Listener,
    address: Option<ListenAddress>,
    identity: Option<PathBuf>,
    /// Where the last snapshot is kept, for boots in which the host is away.
    kept: Option<Kept>,
    told: Told,
}

/// What is to be done after the host's last word.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    Wait,
    Off,
    Fetch {
        address: ListenAddress,
        /// PEM, or empty.
        certificate: String,
    },
}

impl Refresher {
    /// Fetches for `data` what `host` says is there, again with every change that `events` tell.
    /// With an `address`, the host is there, whatever it says. `identity` is the folder of the
    /// agent's identity; without one the host need not have one either. What was fetched is kept in
    /// `kept`, and served from there while the host is away.
    pub(crate) fn new(
        data: InstanceData,
        host: &Host,
        events: &Events,
        address: Option<ListenAddress>,
        identity: Option<PathBuf>,
        kept: Option<Kept>,
    ) -> Self {
        Self {
            data,
            said: host.watch(),
            heard: events.listen(vec![CONFIG.to_owned(), DEVICE.to_owned()]),
            address,
            identity,
            kept,
            told: Told::default(),
        }
    }

    /// Whether the guest's data are expected to come, if only from an earlier boot.
    pub(crate) fn expects_data(&self) -> bool {
        if self.kept.as_ref().is_some_and(Kept::is_there) {
            return true;
        }
        let goal = goal(self.said.borrow().as_ref(), self.address.as_ref());
        matches!(goal, Goal::Fetch { .. })
    }

    /// Asks once whether the host is at `address`. One that answers within
    /// [`defaults::LOOK_TIMEOUT`] is there from now on, whatever it says.
    pub(crate) async fn look_for(&mut self, address: ListenAddress) {
        let Ok(tls) = self.tls("") else {
            return;
        };
        let mut caller = HostApi::new(address.clone(), tls).caller();
        let asked = caller.call(Method::GET, INFO, None);
        let answer = timeout(defaults::LOOK_TIMEOUT, asked).await;
        match answer.unwrap_or(Err(CallError::Silent)) {
            Ok(_) => {
                tracing::info!(%address, "the host answers where it usually does");
                self.address = Some(address);
            }
            Err(error) => tracing::debug!(%address, %error, "the host may yet say where it is"),
        }
    }

    /// Goes on until `stop` is cancelled. Where the host has not told the data within
    /// [`defaults::KEPT_AFTER`], those that are kept are served until it does.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (data, kept) = (self.data.clone(), self.kept.clone());
        let fetching = self.fetch_until(stop.clone());
        let fall_back = async {
            sleep(defaults::KEPT_AFTER).await;
            if let Some(kept) = kept {
                serve_kept(&data, kept).await;
            }
            pending::<()>().await;
        };
        select! {
            () = fetching => {}
            () = fall_back => {}
        }
    }

    async fn fetch_until(self, stop: CancellationToken) {
        let (mut said, address) = (self.said.clone(), self.address.clone());
        let mut follower = self;
        loop {
            let last = goal(said.borrow_and_update().as_ref(), address.as_ref());
            let another = said.wait_for(|said| goal(said.as_ref(), address.as_ref()) != last);
            select! {
                () = follower.follow(&last) => {}
                changed = another => if changed.is_err() {
                    return;
                },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Does what the goal says, without an end.
    async fn follow(&mut self, goal: &Goal) {
        match goal {
            Goal::Wait => {}
            Goal::Off => {
                self.data.set_host(None);
                self.switch_off().await;
            }
            Goal::Fetch {
                address,
                certificate,
            } => match self.tls(certificate) {
                Ok(tls) => {
                    let host = HostApi::new(address.clone(), tls);
                    self.data.set_host(Some(host.clone()));
                    self.fetch_again_and_again(&host).await;
                }
                Err(error) => tracing::error!(%error, "cannot speak TLS to the host"),
            },
        }
        // Nobody is asked, so what has changed means nothing. It is taken all the same, because
        // the log of events keeps what a listener does not take.
        loop {
            let _ = self.heard.next().await;
        }
    }

    /// TLS with the host: pinned to the certificate it gave, or to those in the identity.
    fn tls(&self, certificate: &str) -> Result<Option<Arc<ClientConfig>>, IdentityError> {
        let folder = self.identity.as_deref();
        let hosts = match (certificate, folder) {
            ("", None) => return Ok(None),
            ("", Some(folder)) => tls::hosts(folder)?,
            // It was read once already when the host gave it.
            (pem, _) => CertificateDer::pem_slice_iter(pem.as_bytes())
                .filter_map(Result::ok)
                .collect(),
        };
        tls::client_config(folder, hosts).map(Some)
    }

    async fn fetch_again_and_again(&mut self, host: &HostApi) {
        let mut pause = defaults::FETCH_PAUSE;
        let mut news: Vec<Event> = Vec::new();
        loop {
            let fetched = timeout(defaults::FETCH_TIMEOUT, fetch(host))
                .await
                .unwrap_or(Err(CallError::Silent));
            let old = self.data.snapshot();
            let fresh = match fetched {
                Ok(snapshot) => {
                    tracing::debug!(?snapshot, "the host has told what this instance is");
                    self.data.publish(snapshot);
                    self.keep().await;
                    pause = defaults::FETCH_PAUSE;
                    self.data.snapshot()
                }
                Err(error) => {
                    self.report_failure(&error, pause).await;
                    None
                }
            };
            // Nobody who hears of a change finds the old value afterwards, if the host answers.
            for event in news.drain(..) {
                if self.told.hear(&event.kind, &event.metadata) {
                    self.data.tell(&event.kind, event.metadata);
                }
            }
            if let Some(new) = fresh {
                for change in self.told.show(old.as_deref(), &new) {
                    self.data.tell(&change.kind, change.metadata);
                }
                news = self.next_news().await;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(defaults::MAX_FETCH_PAUSE);
                news = self.news_until_now();
            }
        }
    }

    /// The host wants this guest to know nothing: what is kept of earlier boots goes, too.
    async fn switch_off(&self) {
        self.data.forget(Availability::Off);
        if let Some(kept) = self.kept.clone() {
            log_failure(run_blocking(move || kept.remove()).await);
        }
    }

    async fn keep(&self) {
        if let (Some(kept), Some(snapshot)) = (self.kept.clone(), self.data.snapshot()) {
            let data = self.data.clone();
            log_failure(run_blocking(move || kept.save_if_current(&snapshot, &data)).await);
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
            self.switch_off().await;
        }
    }

    /// Waits for a change, and collects what comes soon after it.
    async fn next_news(&mut self) -> Vec<Event> {
        let first = select! {
            // Of events that are lost it is only known that something has changed.
            event = self.heard.next() => event.ok().and_then(|text| parse(&text)),
            said = self.said.changed() => match said {
                Ok(()) => None,
                Err(_) => return pending().await,
            },
        };
        sleep(defaults::FETCH_PAUSE).await;
        let mut news: Vec<Event> = first.into_iter().collect();
        news.append(&mut self.news_until_now());
        news
    }

    fn news_until_now(&mut self) -> Vec<Event> {
        let mut news = Vec::new();
        while let Some(heard) = self.heard.next().now_or_never() {
            news.extend(heard.ok().and_then(|text| parse(&text)));
        }
        news
    }
}

fn log_failure(done: io::Result<io::Result<()>>) {
    if let Err(error) = done.flatten() {
        tracing::warn!(%error, "cannot keep the instance data for a boot without the host");
    }
}

/// Serves what is kept, unless the host has told the data meanwhile.
async fn serve_kept(data: &InstanceData, kept: Kept) {
    if !matches!(*data.watch().borrow(), Availability::Unknown) {
        return;
    }
    let loaded = run_blocking(move || kept.load()).await;
    match loaded.flatten() {
        Ok(Some(snapshot)) => {
            if data.publish_if_unknown(snapshot.marked_as_kept()) {
                tracing::warn!("the host is away: the instance data are those of an earlier boot");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot read the instance data of an earlier boot"),
    }
}

fn parse(event: &str) -> Option<Event> {
    serde_json::from_str(event).ok()
}

fn goal(said: Option<&HostConnection>, address: Option<&ListenAddress>) -> Goal {
    match (said, address) {
        (None, None) => Goal::Wait,
        (None, Some(address)) => Goal::Fetch {
            address: address.clone(),
            certificate: String::new(),
        },
        (Some(said), _) if !said.devlxd => Goal::Off,
        (Some(said), address) => Goal::Fetch {
            address: address.cloned().unwrap_or_else(|| vsock_address(said)),
            certificate: said.certificate.clone(),
        },
    }
}

fn vsock_address(said: &HostConnection) -> ListenAddress {
    // A host that does not know its own id means itself.
    let cid = match Cid(said.cid) {
        Cid::ANY | Cid(0) => Cid::HOST,
        cid => cid,
    };
    ListenAddress::Vsock(VsockAddress {
        cid,
        port: said.port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(cid: u32, devlxd: bool) -> HostConnection {
        HostConnection {
            cid,
            port: 1024,
            certificate: "pem".to_owned(),
            devlxd,
        }
    }

    fn fetch_from(address: &str, certificate: &str) -> Goal {
        Goal::Fetch {
            address: address.parse().unwrap(),
            certificate: certificate.to_owned(),
        }
    }

    #[test]
    fn the_host_is_where_it_says() {
        let goal = |cid| goal(Some(&said(cid, true)), None);
        assert_eq!(goal(7), fetch_from("vsock:7:1024", "pem"));
        for unknown in [0, u32::MAX] {
            assert_eq!(goal(unknown), fetch_from("vsock:2:1024", "pem"));
        }
    }

    #[test]
    fn the_configuration_knows_better_where_it_is_but_not_whether() {
        let address = "unix:/x".parse().unwrap();
        let goal = |said: Option<&HostConnection>| goal(said, Some(&address));
        assert_eq!(goal(None), fetch_from("unix:/x", ""));
        assert_eq!(goal(Some(&said(2, true))), fetch_from("unix:/x", "pem"));
        assert_eq!(goal(Some(&said(2, false))), Goal::Off);
    }

    #[test]
    fn nobody_is_asked_before_anybody_has_said_anything() {
        assert_eq!(goal(None, None), Goal::Wait);
        assert_eq!(goal(Some(&said(2, false)), None), Goal::Off);
    }
}
