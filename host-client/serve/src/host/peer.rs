//! The guests of one origin: how many connections they may have, and whose a connection is.

use std::{io, sync::Arc};

use rustls::ServerConfig;
use tokio::{sync::Semaphore, time::timeout};
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};
use vsock_agent_transport::{
    self as transport, Limits, Slot, Stream,
    tls::{HandshakeError, LONG_GRACE, accept},
};

use super::{HostState, api, guest::ServedGuest, limits, log_limit::LogLimit, tls};
use vsock_agent_protocol::printable::{LOG_CHARS, excerpt};

/// Counts the connections from one origin, and limits them.
#[derive(Debug, Clone)]
pub(super) struct OriginLimits {
    /// Connections with a verified certificate.
    known: Arc<Semaphore>,
    unverified: Arc<transport::Admission>,
    /// Our own part of a TLS handshake is computed for one connection at a time, so that many
    /// connections of one guest leave processor time to the others.
    handshake: Arc<Semaphore>,
}

impl Default for OriginLimits {
    fn default() -> Self {
        Self {
            known: Arc::new(Semaphore::new(limits::MAX_CONNECTIONS)),
            unverified: transport::Admission::new(Limits::UNVERIFIED),
            handshake: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The guests of one origin: one, unless the configuration has two names for the same machine.
#[derive(Debug)]
pub(super) struct OriginGuests {
    guests: Vec<Arc<ServedGuest>>,
    admission: OriginLimits,
    /// `None`: every connection from here is the guest's.
    tls: Option<Arc<ServerConfig>>,
}

impl OriginGuests {
    pub(super) fn new(guests: Vec<Arc<ServedGuest>>, admission: OriginLimits) -> Self {
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
    pub(super) fn admission(&self) -> OriginLimits {
        self.admission.clone()
    }

    /// Serves a connection in a task, or closes it if there are too many.
    pub(super) fn admit(
        self: Arc<Self>,
        host: &Arc<HostState>,
        stream: Stream,
        is_privileged: bool,
    ) {
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

    async fn receive(&self, host: &Arc<HostState>, stream: Stream, slot: Slot) {
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
    async fn serve_plain(&self, host: &Arc<HostState>, stream: Stream, slot: Slot) {
        let [guest] = &self.guests[..] else {
            self.log_refusal("two guests without certificates have this address");
            return;
        };
        let served = slot.wait_for(LONG_GRACE, api::serve(host, guest, stream));
        if served.await.is_none() {
            self.log_refusal("too many connections");
        }
    }

    /// Finds the guest by its certificate.
    async fn identify(
        &self,
        tls: &Arc<ServerConfig>,
        stream: Stream,
        slot: &Slot,
    ) -> Option<(&Arc<ServedGuest>, TlsStream<Stream>)> {
        let turns = Some(&*self.admission.handshake);
        let (limit, config) = (limits::HANDSHAKE_TIMEOUT, || Arc::clone(tls));
        let refused = |error: &io::Error| self.log_refusal(&error.to_string());
        let stream = match accept(stream, slot, turns, limit, config, refused).await {
            Ok(stream) => stream,
            Err(error) => {
                match error {
                    HandshakeError::Evicted => self.log_refusal("too many connections"),
                    HandshakeError::TimedOut => self.log_refusal(&error.to_string()),
                    HandshakeError::Refused(_) => {}
                }
                return None;
            }
        };
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
