//! Where guests come from, who may come from there, and how many at once.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, warn};

use super::{House, api, door::Door, limits, resident::Resident, tls};
use crate::{Endpoint, protocol::address::Cid};

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

/// The guests that come from one origin: one, unless two names stand for the same machine.
#[derive(Debug)]
pub(super) struct Place {
    origin: Origin,
    residents: Vec<Arc<Resident>>,
    connections: Arc<Semaphore>,
    /// `None`: whoever comes from here is the guest.
    tls: Option<Arc<ServerConfig>>,
    complained: Mutex<Option<Instant>>,
}

impl Place {
    pub(super) fn new(
        origin: Origin,
        residents: Vec<Arc<Resident>>,
        connections: Option<Arc<Semaphore>>,
    ) -> Self {
        let known = residents
            .iter()
            .filter_map(|resident| resident.guest.tls.as_ref());
        // One guest with a certificate is enough to ask for one.
        let tls = tls::for_guests(known);
        Self {
            origin,
            residents,
            connections: connections
                .unwrap_or_else(|| Arc::new(Semaphore::new(limits::MAX_CONNECTIONS))),
            tls,
            complained: Mutex::new(None),
        }
    }

    pub(super) fn connections(&self) -> Arc<Semaphore> {
        Arc::clone(&self.connections)
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
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            self.complain("too many connections at once");
            return;
        };
        let own = Arc::clone(house);
        house.tasks.spawn(async move {
            let _permit = permit;
            let served = timeout(limits::CONNECTION_TIMEOUT, self.receive(&own, stream));
            if served.await.is_err() {
                self.complain("a connection was too long");
            }
        });
    }

    async fn receive<S>(&self, house: &Arc<House>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            match &self.residents[..] {
                [resident] => api::serve(house, resident, stream).await,
                _ => self.complain("two guests without certificates come from here"),
            }
            return;
        };
        let Some(stream) = self.shake_hands(tls, stream).await else {
            return;
        };
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
        match resident {
            Some(resident) => api::serve(house, resident, stream).await,
            None => self.complain("a certificate that nobody has"),
        }
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
        let is_due = {
            let mut last = self
                .complained
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let is_due = last.is_none_or(|last| last.elapsed() >= limits::COMPLAINT_INTERVAL);
            if is_due {
                *last = Some(Instant::now());
            }
            is_due
        };
        match is_due {
            true => warn!(guests, what, "refused"),
            false => debug!(guests, what, "refused"),
        }
    }
}
