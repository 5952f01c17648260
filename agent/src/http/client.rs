//! The client of a connection, and the list of connected clients.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use data_encoding::HEXLOWER;
use http::Request;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use vsock_agent_transport::{Closer, Peer};

/// A client, identified by its address and certificate.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// Cancelled when the client is no longer admitted, and when the agent stops.
    pub(crate) stop: CancellationToken,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.certificate {
            None => write!(f, "{}", self.peer),
            Some(certificate) => {
                let print = digest(&SHA256, certificate);
                write!(
                    f,
                    "{} SHA256:{}",
                    self.peer,
                    HEXLOWER.encode(print.as_ref())
                )
            }
        }
    }
}

/// The client of a request. `None` on listeners that do not track clients.
pub(crate) fn of<B>(request: &Request<B>) -> Option<Arc<Client>> {
    request.extensions().get().cloned()
}

/// The connected clients.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: Vec<(Arc<Client>, Closer)>,
    /// The number of entries at which closed ones are removed.
    limit: usize,
}

impl Clients {
    /// Adds a client, until its connection is closed.
    pub(crate) fn add(&self, client: Arc<Client>, closer: Closer) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.entries.len() >= table.limit {
            // A session that has taken over the socket holds the client.
            let is_there = |client: &Arc<Client>, closer: &Closer| {
                closer.is_open() || Arc::strong_count(client) > 1
            };
            table
                .entries
                .retain(|(client, closer)| is_there(client, closer));
            table.limit = (2 * table.entries.len()).max(64);
        }
        table.entries.push((client, closer));
    }

    /// Closes the connections of all clients that are not admitted, at once and whatever they are used
    /// for, and returns their number.
    pub(crate) fn retain(&self, is_admitted: impl Fn(&Client) -> bool) -> usize {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = table
            .entries
            .extract_if(.., |(client, _)| !is_admitted(client));
        gone.map(|(client, closer)| {
            client.stop.cancel();
            closer.close();
        })
        .count()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::UnixStream};
    use vsock_agent_transport::Stream;

    use super::*;

    #[tokio::test]
    async fn those_that_are_not_let_in_are_cut_off() {
        let clients = Clients::default();
        let mut connections = Vec::new();
        for certificate in [[1], [2]] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ours = Stream::from(ours);
            let client = Arc::new(Client {
                peer: Peer::Unix,
                certificate: Some(certificate.to_vec().into()),
                stop: CancellationToken::new(),
            });
            clients.add(Arc::clone(&client), ours.closer());
            connections.push((ours, theirs, client));
        }
        let second = |client: &Client| client.certificate == Some([2].to_vec().into());
        assert_eq!(clients.retain(second), 1);
        assert_eq!(connections[0].1.read(&mut [0]).await.unwrap(), 0);
        assert!(connections[0].2.stop.is_cancelled());
        assert!(!connections[1].2.stop.is_cancelled());
        assert!(
            connections[0]
                .2
                .to_string()
                .starts_with("unix SHA256:4bf5122f344554c53bde2ebb")
        );
    }

    #[tokio::test]
    async fn those_that_have_left_are_forgotten() {
        let clients = Clients::default();
        for _ in 0..1000 {
            let (ours, _) = UnixStream::pair().unwrap();
            let client = Client {
                peer: Peer::Unix,
                certificate: None,
                stop: CancellationToken::new(),
            };
            clients.add(Arc::new(client), Stream::from(ours).closer());
        }
        assert!(clients.0.lock().unwrap().entries.len() <= 64);
    }
}
