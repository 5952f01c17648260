//! Who is at the other end of a connection, for as long as it is let in.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use data_encoding::HEXLOWER;
use http::Request;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use crate::http::listen::{Closer, Peer};

/// A client, by where it comes from and what it has shown.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// Cancelled when the client is no longer let in, and when the agent stops.
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

/// The client that asks. `None` on listeners that do not know theirs.
pub(crate) fn of<B>(request: &Request<B>) -> Option<Arc<Client>> {
    request.extensions().get().cloned()
}

/// The clients that are connected.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: Vec<(Arc<Client>, Closer)>,
    /// The number of entries at which those that have left are looked for.
    limit: usize,
}

impl Clients {
    /// Remembers a client until it has left.
    pub(crate) fn add(&self, client: Arc<Client>, closer: Closer) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.entries.len() >= table.limit {
            // A session that has taken the socket over keeps the client.
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

    /// Ends the connections of all that are not let in, at once and whatever they are used for, and
    /// returns how many.
    pub(crate) fn keep(&self, is_let_in: impl Fn(&Client) -> bool) -> usize {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = table
            .entries
            .extract_if(.., |(client, _)| !is_let_in(client));
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

    use super::*;
    use crate::http::listen::Stream;

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
        assert_eq!(clients.keep(second), 1);
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
