//! The guests of one origin: how many connections they may have, and whose a connection is.

use std::{sync::Arc, time::Duration};

use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tracing::{debug, warn};
use vsock_agent_transport as transport;

use super::{HostState, api, guest::ServedGuest, limits, log_limit::LogLimit, tls};
use vsock_agent_protocol::printable::{LOG_CHARS, excerpt};

/// Counts the connections from one origin, and limits them.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// Connections with a verified certificate.
    known: Arc<Semaphore>,
    unverified: Arc<transport::Admission>,
    /// Our own part of a TLS handshake is computed for one connection at a time, so that many
    /// connections of one guest leave processor time to the others.
    handshake: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            known: Arc::new(Semaphore::new(limits::MAX_CONNECTIONS)),
            unverified: transport::Admission::new(limits::UNVERIFIED),
            handshake: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The guests of one origin: one, unless the configuration has two names for the same machine.
#[derive(Debug)]
pub(super) struct Peer {
    guests: Vec<Arc<ServedGuest>>,
    admission: Admission,
    /// `None`: every connection from here is the guest's.
    tls: Option<Arc<ServerConfig>>,
}

impl Peer {
    pub(super) fn new(guests: Vec<Arc<ServedGuest>>, admission: Admission) -> Self {
        let known = guests.iter().filter_map(|guest| guest.spec.tls.as_ref());
        // If one guest has a certificate, every connection must show one.
        let tls = tls::for_guests(known);
        Self {
            guests,
            admission,
            tls,
        }
    }

    /// The counters of its connections, shared with the peer that replaces this one.
    pub(super) fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// Serves a connection in a task, or closes it if there are too many.
    pub(super) fn admit<S>(self: Arc<Self>, host: &Arc<HostState>, stream: S, is_privileged: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let own = Arc::clone(host);
        host.tasks.spawn(async move {
            let Some(slot) = self.admission.unverified.enter(is_privileged).await else {
                self.log_refusal("too many connections");
                return;
            };
            // Boxed because most of many connections do not come this far: until then they need less
            // memory.
            let served = Box::pin(self.receive(&own, stream, slot));
            if timeout(limits::CONNECTION_TIMEOUT, served).await.is_err() {
                self.log_refusal("connection exceeded its time limit");
            }
        });
    }

    async fn receive<S>(&self, host: &Arc<HostState>, stream: S, slot: transport::Slot)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.tls else {
            return self.serve_plain(host, stream, slot).await;
        };
        let Some((guest, stream)) = self.identify(tls, stream, &slot).await else {
            return;
        };
        let Ok(_permit) = Arc::clone(&self.admission.known).try_acquire_owned() else {
            self.log_refusal("too many connections");
            return;
        };
        drop(slot);
        api::serve(host, guest, stream).await;
    }

    /// Serves a guest without a certificate. It keeps its slot, and may have to give it up.
    async fn serve_plain<S>(&self, host: &Arc<HostState>, stream: S, slot: transport::Slot)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let [guest] = &self.guests[..] else {
            self.log_refusal("two guests without certificates have this address");
            return;
        };
        let served = slot.wait_for(limits::LONG_GRACE, api::serve(host, guest, stream));
        if served.await.is_none() {
            self.log_refusal("too many connections");
        }
    }

    /// Finds the guest by its certificate.
    async fn identify<S>(
        &self,
        tls: &Arc<ServerConfig>,
        stream: S,
        slot: &transport::Slot,
    ) -> Option<(&Arc<ServedGuest>, TlsStream<S>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = self.handshake(tls, stream, slot).await?;
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let guest = leaf.and_then(|leaf| {
            let has_it = |guest: &&Arc<ServedGuest>| {
                guest
                    .spec
                    .tls
                    .as_ref()
                    .is_some_and(|tls| tls.agent() == leaf.as_ref())
            };
            self.guests.iter().find(has_it)
        });
        if guest.is_none() {
            self.log_refusal("unknown certificate");
        }
        guest.map(|guest| (guest, stream))
    }

    async fn handshake<S>(
        &self,
        tls: &Arc<ServerConfig>,
        stream: S,
        slot: &transport::Slot,
    ) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let (error, stream) = match self.in_time(slot, limits::GRACE, &mut acceptor).await? {
            Ok(client_hello) => {
                let permit = self.admission.handshake.acquire().await.ok();
                let accept = client_hello.into_stream(Arc::clone(tls)).into_fallible();
                drop(permit);
                match self.in_time(slot, limits::LONG_GRACE, accept).await? {
                    Ok(stream) => return Some(stream),
                    Err((error, stream)) => (error, Some(stream)),
                }
            }
            Err(error) => (error, acceptor.take_io()),
        };
        self.log_refusal(&error.to_string());
        // Closing a socket with unread data resets it, and the alert with the reason would be lost.
        let rest = async {
            let mut stream = stream.ok_or(std::io::ErrorKind::NotConnected)?;
            stream.shutdown().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        let _ = slot
            .wait_for(limits::GRACE, timeout(limits::REFUSAL_TIMEOUT, rest))
            .await;
        None
    }

    /// Waits for the guest's part of a handshake. `None` on timeout, or if another connection needs
    /// the slot.
    async fn in_time<T>(
        &self,
        slot: &transport::Slot,
        grace: Duration,
        step: impl Future<Output = T>,
    ) -> Option<T> {
        let limited = timeout(limits::HANDSHAKE_TIMEOUT, step);
        let why = match slot.wait_for(grace, limited).await {
            Some(Ok(done)) => return Some(done),
            Some(Err(_)) => "TLS handshake timed out",
            None => "too many connections",
        };
        self.log_refusal(why);
        None
    }

    /// Logs why a connection was refused. The number of lines per guest is limited.
    fn log_refusal(&self, what: &str) {
        let guests: Vec<&str> = self.guests.iter().map(|guest| guest.name()).collect();
        let guests = guests.join(", ");
        let what = excerpt(what.as_bytes(), LOG_CHARS);
        let limit = self.guests.first().map(|guest| &guest.log);
        match limit.and_then(LogLimit::admit) {
            Some(left_out) => warn!(guests, what, left_out, "refused"),
            None => debug!(guests, what, "refused"),
        }
    }
}
