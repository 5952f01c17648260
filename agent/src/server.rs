//! The accept loop, and a connection from its first byte to HTTP.
//!
//! ```text
//! accept ─► allowed machine? ─► place among the unauthenticated ─► TLS ─► HTTP/1.1 ─► router
//!             no: closed unread                                     └ refused: closed
//! ```

use std::{collections::BTreeSet, io, sync::Arc};

use rustls::ServerConfig;
use tokio::{
    io::AsyncWriteExt,
    select,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::either::Either;
use tracing::Instrument as _;
use vsock_agent_protocol::{address::Cid, by_insertion};

use crate::{
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
    handshakes: Arc<Semaphore>,
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
            handshakes: Arc::new(Semaphore::new(defaults::MAX_HANDSHAKES)),
        })
    }

    /// Accepts until the shutdown. Does nothing else, so that the kernel's queue stays short.
    pub(crate) async fn accept_all(self: Arc<Self>, listener: Listener) {
        let stop = self.app.shutdown.child_token();
        loop {
            let accepted = select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    // Out of descriptors or memory: the next try would fail as fast.
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(defaults::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: Stream, peer: Peer) {
        if let Peer::Vsock(address) = peer
            && !self.allowed_cids.contains(&address.cid)
        {
            tracing::warn!(%peer, "connection from a machine that is not allowed");
            return;
        }
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            tracing::warn!(%peer, limit = defaults::MAX_CONNECTIONS, "too many connections");
            return;
        };
        let server = Arc::clone(self);
        let span = tracing::debug_span!("connection", %peer);
        let connection = async move {
            let _permit = permit;
            if let Err(error) = server.serve(stream).await {
                tracing::debug!(%error, "connection ended");
            }
        };
        self.app.shutdown.spawn(connection.instrument(span));
    }

    async fn serve(&self, stream: Stream) -> io::Result<()> {
        let Some(tls) = self.tls.clone() else {
            return self.speak_http(Either::Left(stream)).await;
        };
        let stop = self.app.shutdown.child_token();
        let stream = select! {
            shaken = self.shake_hands(tls, stream) => shaken?,
            () = stop.cancelled() => return Ok(()),
        };
        self.speak_http(Either::Right(stream)).await
    }

    async fn shake_hands(
        &self,
        tls: Arc<ServerConfig>,
        stream: Stream,
    ) -> io::Result<TlsStream<Stream>> {
        // Never closed, so this only waits.
        let place = self.handshakes.acquire().await.map_err(io::Error::other)?;
        let accept = TlsAcceptor::from(tls).accept(stream).into_fallible();
        let shaken = timeout(defaults::HANDSHAKE_TIMEOUT, accept).await?;
        drop(place);
        match shaken {
            Ok(stream) => Ok(stream.into()),
            Err((error, mut stream)) => {
                tracing::warn!(%error, "TLS handshake refused");
                // Closing with something unread would take back the alert that says why.
                let _ = stream.shutdown().await;
                let mut nowhere = tokio::io::sink();
                let rest = tokio::io::copy(&mut stream, &mut nowhere);
                let _ = timeout(defaults::REFUSAL_TIMEOUT, rest).await;
                Err(error)
            }
        }
    }

    async fn speak_http(&self, stream: Transport) -> io::Result<()> {
        let stop = self.app.shutdown.child_token();
        http_connection::serve(stream, stop, &|request| {
            Box::pin(router::route(Arc::clone(&self.app), request))
        })
        .await
    }
}
