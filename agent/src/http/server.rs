//! The accept loop, and a connection from its first byte to HTTP.
//!
//! ```text
//! accept ─► allowed context id? ─► waits for a ClientHello ─► TLS ─► HTTP/1.1 ─► router
//!             no: closed unread      └ silent: evicted for   └ refused: closed
//!                                      others when all slots are taken
//! ```

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{ServerConfig, pki_types::CertificateDer, server::Acceptor};
use tokio::{
    sync::Semaphore,
    time::{Duration, sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use tokio_util::either::Either;
use tracing::Instrument as _;
use vsock_agent_protocol::address::Cid;
use vsock_agent_transport::{Admission, Slot};

use crate::by_insertion::by_insertion;
use crate::{
    app::App,
    config::{Config, Security},
    defaults,
    http::{
        client::{Client, Clients},
        connection::{self, Transport},
        listen::{Listener, Peer, Stream},
        router,
        tls::{self, IdentityError},
    },
};

/// The clients that are admitted.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Without TLS every peer is trusted.
    tls: Option<Arc<ServerConfig>>,
    certificates: Vec<CertificateDer<'static>>,
    allowed_cids: BTreeSet<Cid>,
}

impl Trust {
    /// Reads the certificates of `config`.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub(crate) fn new(config: &Config) -> Result<Self, IdentityError> {
        let mut certificates = Vec::new();
        let tls = match &config.security {
            Security::Plain => None,
            Security::Tls(folder) => {
                certificates = tls::hosts(folder)?;
                Some(tls::server_config(folder, certificates.clone())?)
            }
        };
        Ok(Self {
            tls,
            certificates,
            allowed_cids: by_insertion(config.allowed_cids.iter().copied()),
        })
    }

    pub(crate) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn allows(&self, peer: Peer) -> bool {
        match peer {
            Peer::Vsock(address) => self.allowed_cids.contains(&address.cid),
            Peer::Unix => true,
        }
    }

    fn admits(&self, client: &Client) -> bool {
        let is_known = |certificate| self.certificates.contains(certificate);
        self.allows(client.peer) && client.certificate.as_ref().is_none_or(is_known)
    }
}

/// The state that all listeners share.
#[derive(Debug)]
pub(crate) struct Server {
    app: Arc<App>,
    trust: RwLock<Arc<Trust>>,
    clients: Clients,
    connections: Arc<Semaphore>,
    /// Connections that have not authenticated yet.
    unknown: Arc<Admission>,
    /// Serialises our own computation in the handshakes of unprivileged peers, so that many of them leave
    /// the other worker to authenticated clients.
    handshakes: Semaphore,
}

impl Server {
    /// A server for `app`.
    pub(crate) fn new(app: Arc<App>, trust: Trust) -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::clone(&app.connections),
            app,
            trust: RwLock::new(Arc::new(trust)),
            clients: Clients::default(),
            unknown: Admission::new(defaults::UNKNOWN),
            handshakes: Semaphore::new(1),
        })
    }

    /// Replaces the admitted clients. Connections of clients that are no longer admitted are closed.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Switched`]; nothing has changed then.
    pub(crate) fn trust(&self, trust: Trust) -> Result<(), IdentityError> {
        if trust.is_tls() != self.trusted().is_tls() {
            return Err(IdentityError::Switched);
        }
        let trust = Arc::new(trust);
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&trust);
        let closed = self.clients.retain(|client| trust.admits(client));
        if closed > 0 {
            tracing::info!(
                closed,
                "closed the connections of clients that are no longer admitted"
            );
        }
        Ok(())
    }

    fn trusted(&self) -> Arc<Trust> {
        Arc::clone(&self.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The accept loop, until the shutdown. It waits for nothing else, so that the kernel's queue stays
    /// short and privileged peers do not wait behind others.
    pub(crate) async fn accept_all(self: Arc<Self>, listener: Listener) {
        let stop = self.app.shutdown.child_token();
        stop.run_until_cancelled(async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => self.admit(stream, peer),
                    Err(error) => {
                        // Out of descriptors or memory: the next call would fail at once.
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(defaults::ACCEPT_PAUSE).await;
                    }
                }
            }
        })
        .await;
    }

    fn admit(self: &Arc<Self>, stream: Stream, peer: Peer) {
        let trust = self.trusted();
        if !trust.allows(peer) {
            tracing::warn!(%peer, "connection from a machine that is not allowed");
            return;
        }
        let server = Arc::clone(self);
        let span = tracing::debug_span!("connection", %peer);
        let connection = async move {
            let served = if trust.is_tls() {
                // Boxed, because most connections of a flood do not get further than this.
                Box::pin(server.serve_tls(stream, peer)).await
            } else {
                server.serve_http(Either::Left(stream), peer).await
            };
            if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            }
        };
        self.app.shutdown.spawn(connection.instrument(span));
    }

    async fn serve_tls(&self, stream: Stream, peer: Peer) -> io::Result<()> {
        let stop = self.app.shutdown.child_token();
        let handshaken = stop.run_until_cancelled(self.handshake(stream, peer)).await;
        match handshaken {
            Some(stream) => self.serve_http(Either::Right(stream?), peer).await,
            None => Ok(()),
        }
    }

    async fn handshake(&self, stream: Stream, peer: Peer) -> io::Result<TlsStream<Stream>> {
        let is_privileged = peer.is_privileged();
        let slot = self.unknown.enter(is_privileged).await;
        let slot = slot.ok_or_else(evicted)?;
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let (error, stream) = match with_timeouts(&slot, defaults::GRACE, &mut acceptor).await? {
            Ok(start) => {
                // TLS cannot be switched off while the agent runs.
                let tls = self
                    .trusted()
                    .tls
                    .clone()
                    .ok_or(io::ErrorKind::NotConnected)?;
                let turn = if is_privileged {
                    None
                } else {
                    self.handshakes.acquire().await.ok()
                };
                let accept = start.into_stream(tls).into_fallible();
                drop(turn);
                match with_timeouts(&slot, defaults::HANDSHAKE_GRACE, accept).await? {
                    Ok(stream) => return Ok(stream.into()),
                    Err((error, stream)) => (error, Some(stream)),
                }
            }
            Err(error) => (error, acceptor.take_io()),
        };
        tracing::warn!(%peer, %error, "TLS handshake refused");
        if let Some(stream) = stream {
            let watch = stream.watch();
            let drained = timeout(defaults::REFUSAL_TIMEOUT, watch.drain());
            let _ = slot.wait_for(defaults::GRACE, drained).await;
        }
        Err(error)
    }

    async fn serve_http(&self, stream: Transport, peer: Peer) -> io::Result<()> {
        let Ok(_permit) = self.connections.try_acquire() else {
            tracing::warn!(%peer, limit = defaults::MAX_CONNECTIONS, "too many connections");
            return Ok(());
        };
        let stop = self.app.shutdown.child_token();
        let certificate = match &stream {
            Either::Left(_) => None,
            Either::Right(stream) => stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|leaf| leaf.clone().into_owned()),
        };
        let client = Arc::new(Client {
            peer,
            certificate,
            stop: stop.clone(),
        });
        let closer = connection::socket(&stream).closer();
        self.clients.add(Arc::clone(&client), closer);
        // The admitted clients may have changed during the handshake.
        if !self.trusted().admits(&client) {
            return Ok(());
        }
        connection::serve(stream, stop, &|mut request| {
            request.extensions_mut().insert(Arc::clone(&client));
            Box::pin(router::route(Arc::clone(&self.app), request))
        })
        .await
    }
}

/// Runs one step of a handshake.
///
/// # Errors
///
/// `TimedOut` after [`defaults::HANDSHAKE_TIMEOUT`]; another error when the slot is needed after `grace`.
async fn with_timeouts<T>(
    slot: &Slot,
    grace: Duration,
    step: impl Future<Output = T>,
) -> io::Result<T> {
    let limited = timeout(defaults::HANDSHAKE_TIMEOUT, step);
    Ok(slot.wait_for(grace, limited).await.ok_or_else(evicted)??)
}

fn evicted() -> io::Error {
    io::Error::other("the slot was needed for another connection")
}
