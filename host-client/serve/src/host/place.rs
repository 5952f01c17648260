//! Where guests come from, who may come from there, and how many at once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tracing::{debug, warn};
use vsock_agent_transport as transport;

use super::{House, api, door::Door, limits, log_limit::LogLimit, resident::Resident, tls};
use vsock_agent_client::Endpoint;
use vsock_agent_protocol::{
    address::Cid,
    printable::{LOG_CHARS, excerpt},
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
    /// Where the guest with its agent at `endpoint` comes from when it asks for `port`. `None` for a
    /// kind of endpoint that is not known here.
    pub(super) fn of(endpoint: &Endpoint, port: u32) -> Option<Self> {
        let beside = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("_{port}"));
            Self::Socket(name.into())
        };
        match endpoint {
            Endpoint::Vsock(address) => Some(Self::Machine(address.cid)),
            Endpoint::Unix(path) | Endpoint::Hybrid { path, .. } => Some(beside(path)),
            _ => None,
        }
    }
}

/// How many connections there are, and how many there may be.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// Of guests that have shown their certificate.
    known: Arc<Semaphore>,
    waiting: Arc<transport::Admission>,
    /// Our own part of a TLS handshake is computed for one at a time, so that a crowd in one guest
    /// leaves time to the others.
    computing: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            known: Arc::new(Semaphore::new(limits::MAX_CONNECTIONS)),
            waiting: transport::Admission::new(limits::WAITING),
            computing: Arc::new(Semaphore::new(1)),
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
    pub(super) fn admit<S>(self: Arc<Self>, house: &Arc<House>, stream: S, is_privileged: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let own = Arc::clone(house);
        house.tasks.spawn(async move {
            let Some(waiting) = self.admission.waiting.enter(is_privileged).await else {
                self.complain("too many connections at once");
                return;
            };
            // Most of a crowd gets no further: what comes then is made when it comes.
            let served = Box::pin(self.receive(&own, stream, waiting));
            if timeout(limits::CONNECTION_TIMEOUT, served).await.is_err() {
                self.complain("a connection was too long");
            }
        });
    }

    async fn receive<S>(&self, house: &Arc<House>, stream: S, waiting: transport::Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            return self.serve_plain(house, stream, waiting).await;
        };
        let Some((resident, stream)) = self.identify(tls, stream, &waiting).await else {
            return;
        };
        let Ok(_permit) = Arc::clone(&self.admission.known).try_acquire_owned() else {
            self.complain("too many connections at once");
            return;
        };
        drop(waiting);
        api::serve(house, resident, stream).await;
    }

    /// Serves a guest without a certificate, which stays one of those who make room.
    async fn serve_plain<S>(&self, house: &Arc<House>, stream: S, waiting: transport::Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let [resident] = &self.residents[..] else {
            self.complain("two guests without certificates come from here");
            return;
        };
        let served = waiting.wait_for(limits::LONG_GRACE, api::serve(house, resident, stream));
        if served.await.is_none() {
            self.complain("too many connections at once");
        }
    }

    /// Whose connection it is, by its certificate.
    async fn identify<S>(
        &self,
        tls: &Arc<ServerConfig>,
        stream: S,
        waiting: &transport::Place,
    ) -> Option<(&Arc<Resident>, TlsStream<S>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = self.shake_hands(tls, stream, waiting).await?;
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

    async fn shake_hands<S>(
        &self,
        tls: &Arc<ServerConfig>,
        stream: S,
        waiting: &transport::Place,
    ) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let (error, stream) = match self.in_time(waiting, limits::GRACE, &mut acceptor).await? {
            Ok(greeted) => {
                let turn = self.admission.computing.acquire().await.ok();
                let accept = greeted.into_stream(Arc::clone(tls)).into_fallible();
                drop(turn);
                match self.in_time(waiting, limits::LONG_GRACE, accept).await? {
                    Ok(stream) => return Some(stream),
                    Err((error, stream)) => (error, Some(stream)),
                }
            }
            Err(error) => (error, acceptor.take_io()),
        };
        self.complain(&error.to_string());
        // Closing with something unread would take back the alert that says why.
        let rest = async {
            let mut stream = stream.ok_or(std::io::ErrorKind::NotConnected)?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        let _ = waiting
            .wait_for(limits::GRACE, timeout(limits::REFUSAL_TIMEOUT, rest))
            .await;
        None
    }

    /// What a guest does in a handshake, unless it takes too long, or another needs the place.
    async fn in_time<T>(
        &self,
        waiting: &transport::Place,
        grace: Duration,
        step: impl Future<Output = T>,
    ) -> Option<T> {
        let limited = timeout(limits::HANDSHAKE_TIMEOUT, step);
        let why = match waiting.wait_for(grace, limited).await {
            Some(Ok(done)) => return Some(done),
            Some(Err(_)) => "no TLS handshake in time",
            None => "too many connections at once",
        };
        self.complain(why);
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
