//! Where guests come from, who may come from there, and how many at once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use super::{
    House, api,
    door::Door,
    limits,
    log_limit::LogLimit,
    resident::Resident,
    tls,
    waiting::{Entry, Waiting},
};
use crate::{
    Endpoint,
    protocol::{
        address::Cid,
        printable::{LOG_CHARS, excerpt},
    },
};

/// Where a connection comes from, as the kernel vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// A machine, by its context id.
    Machine(Cid),
    /// The one whose monitor maps ports to sockets with this one's name.
    Socket(PathBuf),
}

impl Origin {
    /// Where the guest with its agent at `endpoint` comes from when it asks for `port`.
    pub(super) fn of(endpoint: &Endpoint, port: u32) -> Self {
        let beside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("_{port}"));
            Self::Socket(name.into())
        };
        match endpoint {
            Endpoint::Vsock(address) => Self::Machine(address.cid),
            Endpoint::Unix(path) | Endpoint::Hybrid { path, .. } => beside(path),
        }
    }
}

/// How many connections there are, and how many there may be.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// Of guests that have shown their certificate.
    known: Arc<Semaphore>,
    waiting: Arc<Waiting>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            known: Arc::new(Semaphore::new(limits::MAX_CONNECTIONS)),
            waiting: Arc::default(),
        }
    }
}

/// The guests that come from one origin: one, unless two names stand for the same machine.
#[derive(Debug)]
pub(super) struct Place {
    origin: Origin,
    residents: Vec<Arc<Resident>>,
    admission: Admission,
    /// `None`: whoever comes from here is the guest.
    tls: Option<Arc<ServerConfig>>,
}

impl Place {
    pub(super) fn new(origin: Origin, residents: Vec<Arc<Resident>>, admission: Admission) -> Self {
        let known = residents
            .iter()
            .filter_map(|resident| resident.guest.tls.as_ref());
        // One guest with a certificate is enough to ask for one.
        let tls = tls::for_guests(known);
        Self {
            origin,
            residents,
            admission,
            tls,
        }
    }

    /// What counts its connections, for the place that comes after it.
    pub(super) fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// The listener that its guests come through.
    pub(super) fn door(&self) -> Door {
        match &self.origin {
            Origin::Machine(_) => Door::Vsock,
            Origin::Socket(path) => Door::Unix(path.clone()),
        }
    }

    /// Lets a connection in and serves it, or closes it.
    pub(super) fn admit<S>(self: Arc<Self>, house: &Arc<House>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let waiting = self.admission.waiting.enter();
        let own = Arc::clone(house);
        house.tasks.spawn(async move {
            let served = self.receive(&own, stream, waiting);
            if timeout(limits::CONNECTION_TIMEOUT, served).await.is_err() {
                self.complain("a connection was too long");
            }
        });
    }

    async fn receive<S>(&self, house: &Arc<House>, stream: S, mut waiting: Entry)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let known = tokio::select! {
            known = self.identify(house, stream) => known,
            () = waiting.is_told_to_leave() => {
                self.complain("too many connections at once");
                return;
            }
        };
        let Some((resident, stream)) = known else {
            return;
        };
        let Ok(_permit) = Arc::clone(&self.admission.known).try_acquire_owned() else {
            self.complain("too many connections at once");
            return;
        };
        drop(waiting);
        api::serve(house, resident, stream).await;
    }

    /// Whose connection it is, by its certificate. A guest without one is served here: it stays one
    /// of those who make room.
    async fn identify<S>(
        &self,
        house: &Arc<House>,
        stream: S,
    ) -> Option<(&Arc<Resident>, TlsStream<S>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            match &self.residents[..] {
                [resident] => api::serve(house, resident, stream).await,
                _ => self.complain("two guests without certificates come from here"),
            }
            return None;
        };
        let stream = self.shake_hands(tls, stream).await?;
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let resident = leaf.and_then(|leaf| {
            let has_it = |resident: &&Arc<Resident>| {
                resident
                    .guest
                    .tls
                    .as_ref()
                    .is_some_and(|tls| tls.agent() == leaf.as_ref())
            };
            self.residents.iter().find(has_it)
        });
        if resident.is_none() {
            self.complain("a certificate that nobody has");
        }
        resident.map(|resident| (resident, stream))
    }

    async fn shake_hands<S>(&self, tls: &Arc<ServerConfig>, stream: S) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let accept = TlsAcceptor::from(Arc::clone(tls))
            .accept(stream)
            .into_fallible();
        match timeout(limits::HANDSHAKE_TIMEOUT, accept).await {
            Ok(Ok(stream)) => return Some(stream),
            Err(_) => self.complain("no TLS handshake in time"),
            Ok(Err((error, mut stream))) => {
                self.complain(&error.to_string());
                // Closing with something unread would take back the alert that says why.
                let rest = async {
                    stream.shutdown().await?;
                    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
                };
                let _ = timeout(limits::REFUSAL_TIMEOUT, rest).await;
            }
        }
        None
    }

    /// Says in the log what a guest does wrong, but does not let it fill the log.
    fn complain(&self, what: &str) {
        let guests: Vec<&str> = self
            .residents
            .iter()
            .map(|resident| resident.name())
            .collect();
        let guests = guests.join(", ");
        let what = excerpt(what.as_bytes(), LOG_CHARS);
        let limit = self.residents.first().map(|resident| &resident.log);
        match limit.and_then(LogLimit::admit) {
            Some(left_out) => warn!(guests, what, left_out, "refused"),
            None => debug!(guests, what, "refused"),
        }
    }
}
