//! The accept loop, and a connection from its first byte to HTTP.
//!
//! ```text
//! accept ─► allowed context id? ─► waits for a ClientHello ─► TLS ─► HTTP/1.1 or 2 ─► router
//!             no: closed unread      └ silent: evicted for   └ refused: closed
//!                                      others when all slots are taken
//! ```

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{either::Either, sync::CancellationToken};
use tracing::Instrument as _;
use vsock_agent_protocol::address::Cid;
use vsock_agent_transport::{
    Admission, Limits, Listener, Peer, Stream,
    http::{ALPN_HTTP2, PREFACE},
    tls::{HandshakeError, accept},
};

use crate::{
    api::router,
    app::App,
    by_insertion::by_insertion,
    config::{Config, Security},
    defaults,
    http::{
        client::{Client, Clients},
        connection::{self, Transport},
        http2,
        identity::{self, IdentityError},
        listen,
        reply::Reply,
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
                certificates = identity::host_certificates(folder)?;
                Some(identity::server_config(folder, certificates.clone())?)
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
    unauthenticated: Arc<Admission>,
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
            unauthenticated: Admission::new(Limits::UNVERIFIED),
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
                let (stream, peer) = listener.accept(listen::log_failure).await;
                self.admit(stream, peer);
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
            let served = match trust.tls.clone() {
                // Boxed, because most connections of a flood do not get further than this.
                Some(tls) => Box::pin(server.serve_tls(stream, peer, tls)).await,
                None => server.serve_http(Either::Left(stream), peer).await,
            };
            if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            }
        };
        self.app.shutdown.spawn(connection.instrument(span));
    }

    /// Performs the handshake with `tls`, or with what has replaced it when the client begins.
    async fn serve_tls(
        &self,
        stream: Stream,
        peer: Peer,
        tls: Arc<ServerConfig>,
    ) -> io::Result<()> {
        let handshake = async {
            let is_privileged = peer.is_privileged();
            let slot = self.unauthenticated.enter(is_privileged).await;
            let slot = slot.ok_or(HandshakeError::Evicted)?;
            let turns = (!is_privileged).then_some(&self.handshakes);
            let config = || self.trusted().tls.clone().unwrap_or(tls);
            let limit = defaults::HANDSHAKE_TIMEOUT;
            accept(stream, &slot, turns, limit, config, |error| {
                tracing::warn!(%peer, %error, "TLS handshake refused");
            })
            .await
        };
        let stop = self.app.shutdown.child_token();
        match stop.run_until_cancelled(handshake).await {
            Some(stream) => {
                let stream = stream.map_err(io::Error::other)?;
                self.serve_http(Either::Right(stream.into()), peer).await
            }
            None => Ok(()),
        }
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
        let answer = |mut request: Request<Incoming>| -> BoxFuture<'static, Reply> {
            request.extensions_mut().insert(Arc::clone(&client));
            Box::pin(router::route(Arc::clone(&self.app), request))
        };
        if is_http2(&stream, &stop).await? {
            http2::serve(stream, &self.app.shutdown, stop, &answer).await
        } else {
            connection::serve(stream, stop, &answer).await
        }
    }
}

/// Whether the client speaks HTTP/2: by ALPN, and without TLS by how it begins.
async fn is_http2(stream: &Transport, stop: &CancellationToken) -> io::Result<bool> {
    match stream {
        Either::Right(stream) => Ok(stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2)),
        Either::Left(stream) => {
            let begin = timeout(defaults::HEAD_TIMEOUT, stream.starts_with(PREFACE));
            match stop.run_until_cancelled(begin).await {
                Some(Ok(begins)) => begins,
                // HTTP/1.1 has its own deadline, and ends at once when the agent stops.
                Some(Err(_)) | None => Ok(false),
            }
        }
    }
}
