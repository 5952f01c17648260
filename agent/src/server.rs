//! The accept loop, and a connection from its first byte to HTTP.
//!
//! ```text
//! accept ─► allowed machine? ─► waits for a ClientHello ─► TLS ─► HTTP/1.1 ─► router
//!             no: closed unread   └ silent: leaves for    └ refused: closed
//!                                   others when all places are taken
//! ```

use std::{collections::BTreeSet, future::Future, io, sync::Arc};

use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use tokio_util::either::Either;
use tracing::Instrument as _;
use vsock_agent_protocol::{address::Cid, by_insertion};

use crate::{
    admission::{Admission, Place},
    app::App,
    defaults,
    http_connection::{self, Transport},
    listen::{Listener, Peer, Stream},
    router,
};

/// What all listeners share.
#[derive(Debug)]
pub(crate) struct Server {
    app: Arc<App>,
    tls: Option<Arc<ServerConfig>>,
    allowed_cids: BTreeSet<Cid>,
    connections: Arc<Semaphore>,
    /// Those who have not begun the handshake.
    silent: Arc<Admission>,
    /// Those who have.
    handshakes: Arc<Admission>,
}

impl Server {
    /// A server for `app`. Without `tls` every peer is trusted.
    pub(crate) fn new(
        app: Arc<App>,
        tls: Option<Arc<ServerConfig>>,
        allowed_cids: &[Cid],
    ) -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::clone(&app.connections),
            app,
            tls,
            allowed_cids: by_insertion(allowed_cids.iter().copied()),
            silent: Admission::new(defaults::MAX_SILENT, defaults::RESERVED, defaults::GRACE),
            handshakes: Admission::new(
                defaults::MAX_HANDSHAKES,
                defaults::RESERVED,
                defaults::HANDSHAKE_GRACE,
            ),
        })
    }

    /// Accepts until the shutdown. Waits for nothing else but a place for the next peer, so that the
    /// kernel's queue stays short.
    pub(crate) async fn accept_all(self: Arc<Self>, listener: Listener) {
        let stop = self.app.shutdown.child_token();
        stop.run_until_cancelled(async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => self.admit(stream, peer).await,
                    Err(error) => {
                        // Out of descriptors or memory: the next try would fail as fast.
                        tracing::warn!(%error, "cannot accept a connection");
                        sleep(defaults::ACCEPT_PAUSE).await;
                    }
                }
            }
        })
        .await;
    }

    async fn admit(self: &Arc<Self>, stream: Stream, peer: Peer) {
        if let Peer::Vsock(address) = peer
            && !self.allowed_cids.contains(&address.cid)
        {
            tracing::warn!(%peer, "connection from a machine that is not allowed");
            return;
        }
        let security = match self.tls.clone() {
            None => None,
            Some(tls) => Some((tls, self.silent.enter(peer.is_privileged()).await)),
        };
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!(%peer, limit = defaults::MAX_CONNECTIONS, "too many connections");
            return;
        };
        let server = Arc::clone(self);
        let span = tracing::debug_span!("connection", %peer);
        let connection = async move {
            let _permit = permit;
            let served = match security {
                None => server.speak_http(Either::Left(stream)).await,
                Some((tls, place)) => server.speak_tls(tls, stream, peer, place).await,
            };
            if let Err(error) = served {
                tracing::debug!(%error, "connection ended");
            }
        };
        self.app.shutdown.spawn(connection.instrument(span));
    }

    async fn speak_tls(
        &self,
        tls: Arc<ServerConfig>,
        stream: Stream,
        peer: Peer,
        place: Place,
    ) -> io::Result<()> {
        let stop = self.app.shutdown.child_token();
        let shaken = stop
            .run_until_cancelled(self.shake_hands(tls, stream, peer, place))
            .await;
        match shaken {
            Some(stream) => self.speak_http(Either::Right(stream?)).await,
            None => Ok(()),
        }
    }

    async fn shake_hands(
        &self,
        tls: Arc<ServerConfig>,
        stream: Stream,
        peer: Peer,
        place: Place,
    ) -> io::Result<TlsStream<Stream>> {
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let greeted = in_time(&place, &mut acceptor).await?;
        let refused = match greeted {
            Ok(greeted) => {
                let working = self.handshakes.enter(peer.is_privileged()).await;
                drop(place);
                let accept = greeted.into_stream(tls).into_fallible();
                match in_time(&working, accept).await? {
                    Ok(stream) => return Ok(stream.into()),
                    Err((error, stream)) => (error, Some(stream), working),
                }
            }
            Err(error) => (error, acceptor.take_io(), place),
        };
        let (error, stream, place) = refused;
        tracing::warn!(%peer, %error, "TLS handshake refused");
        if let Some(stream) = stream {
            let watch = stream.watch();
            let told = timeout(defaults::REFUSAL_TIMEOUT, watch.drain());
            let _ = place.wait_for(told).await;
        }
        Err(error)
    }

    async fn speak_http(&self, stream: Transport) -> io::Result<()> {
        let stop = self.app.shutdown.child_token();
        http_connection::serve(stream, stop, &|request| {
            Box::pin(router::route(Arc::clone(&self.app), request))
        })
        .await
    }
}

/// What a peer does in a handshake, as long as it may take.
///
/// # Errors
///
/// When it takes too long, or somebody else needs the place.
async fn in_time<T>(place: &Place, step: impl Future<Output = T>) -> io::Result<T> {
    let limited = timeout(defaults::HANDSHAKE_TIMEOUT, step);
    let crowded = || io::Error::other("the place was needed for another connection");
    Ok(place.wait_for(limited).await.ok_or_else(crowded)??)
}
