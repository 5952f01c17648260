//! Connects a client to a TCP port of the guest.
//!
//! Called by `api/port_forward.rs`. Owns the connection in the guest; independent of HTTP.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use futures_util::future;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::TcpStream,
    select,
    sync::Notify,
    time::timeout,
};
use vsock_agent_protocol::port_forward::PortForward;

use crate::{
    defaults,
    system::{blocking::run_blocking, names},
};

/// Why the connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Port 0.
    #[error("0 is not a port")]
    Port,
    /// Neither an IP address nor a name in `/etc/hosts`.
    #[error("{0:?} is neither an IP address nor a name in /etc/hosts")]
    Name(String),
    /// `connect(2)` timed out.
    #[error("connection to {0} timed out")]
    Timeout(SocketAddr),
    /// The error of `connect(2)`.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
}

/// Connects to the first of the name's addresses that accepts.
///
/// # Errors
///
/// [`DialError`]; of several addresses, the error of the last one.
pub(crate) async fn dial(to: &PortForward) -> Result<TcpStream, DialError> {
    if to.port == 0 {
        return Err(DialError::Port);
    }
    let unknown = || DialError::Name(to.address.clone());
    let mut error = unknown();
    for ip in resolve(&to.address).await {
        let address = SocketAddr::new(ip, to.port);
        match timeout(defaults::DIAL_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Optional: less delay for small packets.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(source)) => error = DialError::Connect(address, source),
            Err(_) => error = DialError::Timeout(address),
        }
    }
    Err(error)
}

async fn resolve(address: &str) -> Vec<IpAddr> {
    if address.is_empty() {
        return vec![Ipv4Addr::LOCALHOST.into()];
    }
    let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    if let Ok(ip) = plain.unwrap_or(address).parse() {
        return vec![ip];
    }
    let hosts = run_blocking(|| fs::read_to_string("/etc/hosts")).await;
    let hosts = hosts.ok().and_then(Result::ok).unwrap_or_default();
    names::addresses(&hosts, address)
}

/// Copies in both directions until both have ended, and returns the numbers of bytes from the client and to
/// it. The end of one direction is forwarded, and the other continues. `early` are bytes that the client has
/// sent already. `left` resolves when the client has closed its connection: the end of its input alone does
/// not tell.
///
/// # Errors
///
/// The first error of either connection, or `BrokenPipe` when the client has left after the end of its
/// input. Both connections are closed then.
pub(crate) async fn copy(
    client: impl AsyncRead + AsyncWrite,
    early: &[u8],
    mut guest: TcpStream,
    left: impl Future<Output = ()>,
) -> io::Result<(u64, u64)> {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_guest, mut to_guest) = guest.split();
    let client_ended = Notify::new();
    let to_port = async {
        let mut all = early.chain(&mut from_client);
        let bytes = tokio::io::copy(&mut all, &mut to_guest).await?;
        to_guest.shutdown().await?;
        client_ended.notify_one();
        Ok(bytes)
    };
    let from_port = async {
        let bytes = tokio::io::copy(&mut from_guest, &mut to_client).await?;
        to_client.shutdown().await?;
        Ok(bytes)
    };
    let gone = async {
        client_ended.notified().await;
        left.await;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    select! {
        ended = future::try_join(to_port, from_port) => ended,
        gone = gone => gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ip_addresses_and_names_in_etc_hosts_are_resolved() {
        for text in ["127.0.0.1", "::1", "[::1]"] {
            assert_eq!(resolve(text).await.len(), 1, "{text}");
        }
        assert!(!resolve("localhost").await.is_empty());
        assert_eq!(resolve("no.such.name").await, [] as [IpAddr; 0]);
    }
}
