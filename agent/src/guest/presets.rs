//! Metadata services of other clouds, for programs in the guest that support no other. Each is a preset:
//! a file with its address and the routes that it serves from the instance data.
//!
//! ```text
//! file ─► Preset ─► loopback   assigns the address
//!                   sk_lookup  redirects connections, so the port stays free for the guest
//!                   peer       the user at the other end: root only
//!                   connections   the oldest one leaves for a new one
//!                   answer ─► token, table ─► template, shape ─► scope ─► the snapshot
//! ```
//!
//! Has access to the instance data only, as the guest API does. Off unless the configuration names a
//! preset.

mod answer;
mod file;
mod loopback;
mod network_data;
mod peer;
mod preset;
mod scope;
mod shape;
mod sk_lookup;
mod table;
mod template;
mod token;
mod user_data;

use std::{net::SocketAddr, os::fd::AsRawFd, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
    unistd::geteuid,
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{
    either::Either,
    sync::{CancellationToken, DropGuard},
};
use vsock_agent_transport::Admission;

use self::{
    answer::Answering,
    loopback::{AddressError, LoopbackAddress, PresetListener},
    peer::{Ends, Peers},
    token::Tokens,
};
use crate::{
    defaults,
    guest::instance_data::{InstanceData, Snapshot},
    http::{
        connection,
        listen::Stream,
        reply::{ApiError, Reply},
    },
    shutdown::Shutdown,
    system::{blocking::run_blocking, rtnetlink::Rtnetlink},
};

pub use self::preset::{Preset, PresetError};

/// The reply to a user who is not allowed.
const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 18\r\nConnection: close\r\n\r\nonly root may ask\n";

/// The metadata services, and who may use them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PresetConfig {
    /// The services.
    pub presets: Vec<Arc<Preset>>,
    /// Whether services with tokens refuse requests without one.
    pub only_with_token: bool,
    /// Whether every user of the guest is allowed, not root alone.
    pub for_all_users: bool,
}

/// The services, with no socket yet.
#[derive(Debug)]
pub(crate) struct Presets {
    config: PresetConfig,
    data: InstanceData,
    root: PathBuf,
    shutdown: Shutdown,
    /// The warnings about unsupported keys that are in the log.
    logged: Vec<String>,
}

/// Open services. `Drop` closes them.
#[derive(Debug)]
pub(crate) struct OpenPresets(#[expect(dead_code, reason = "held for its `Drop`")] DropGuard);

/// One open service.
#[derive(Debug)]
struct Service {
    preset: Arc<Preset>,
    tokens: Tokens,
    only_with_token: bool,
    for_all_users: bool,
    data: InstanceData,
    root: PathBuf,
    connections: Arc<Admission>,
    shutdown: Shutdown,
}

impl Presets {
    /// Services of `data`. `root` is the guest's `/`.
    pub(crate) const fn new(
        config: PresetConfig,
        data: InstanceData,
        root: PathBuf,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            config,
            data,
            root,
            shutdown,
            logged: Vec::new(),
        }
    }

    /// Logs which keys of the snapshot a service cannot serve, each once until that changes.
    pub(crate) fn log_unsupported_keys(&mut self, snapshot: &Snapshot) {
        let unsupported = self.config.presets.iter().flat_map(|preset| {
            let keys = preset.unsupported(snapshot, &nics(snapshot));
            keys.into_iter().map(|key| {
                format!(
                    "the metadata service {} does not support {key}",
                    preset.name
                )
            })
        });
        let unsupported: Vec<_> = unsupported.collect();
        for text in unsupported
            .iter()
            .filter(|text| !self.logged.contains(text))
        {
            tracing::warn!("{text}");
        }
        self.logged = unsupported;
    }

    /// Assigns the addresses to the loopback device and serves them. Errors are logged; a service whose
    /// address or port is in use tries again every [`defaults::LISTEN_RETRY`].
    pub(crate) async fn open(&self) -> OpenPresets {
        let stop = self.shutdown.child_token();
        let mut taken = Vec::new();
        for preset in &self.config.presets {
            if taken.contains(&preset.address()) {
                let name = &preset.name;
                tracing::error!(preset = name, "another preset has this address and port");
                continue;
            }
            taken.push(preset.address());
            let Some(service) = self.service(Arc::clone(preset)) else {
                tracing::error!("no random numbers for tokens");
                break;
            };
            let first = service.listen().await;
            if let Err(error) = &first {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                let name = &preset.name;
                tracing::error!(preset = name, %error, cause, "cannot serve metadata");
            }
            if !matches!(first, Err(AddressError::RealCloud(_))) {
                self.shutdown.spawn(service.run(first.ok(), stop.clone()));
            }
        }
        OpenPresets(stop.drop_guard())
    }

    fn service(&self, preset: Arc<Preset>) -> Option<Arc<Service>> {
        Some(Arc::new(Service {
            preset,
            tokens: Tokens::new()?,
            only_with_token: self.config.only_with_token,
            for_all_users: self.config.for_all_users,
            data: self.data.clone(),
            root: self.root.clone(),
            connections: Admission::new(defaults::METADATA),
            shutdown: self.shutdown.clone(),
        }))
    }
}

impl Service {
    async fn listen(&self) -> Result<PresetListener, AddressError> {
        let address = SocketAddr::from(self.preset.address());
        let listening = LoopbackAddress::acquire(&self.root, address)
            .await?
            .listen(address.port())?;
        tracing::info!(preset = self.preset.name, %address, "serving metadata");
        Ok(listening)
    }

    /// Serves a socket, as soon as there is one, until `stop` is cancelled.
    async fn run(self: Arc<Self>, mut listening: Option<PresetListener>, stop: CancellationToken) {
        let listening = loop {
            if let Some(listening) = listening {
                break listening;
            }
            select! {
                () = sleep(defaults::LISTEN_RETRY) => {}
                () = stop.cancelled() => return,
            }
            listening = self.listen().await.ok();
        };
        let Ok(own) = listening.socket.local_addr() else {
            return;
        };
        let shutdown = self.shutdown.clone();
        let peers = run_blocking(move || Peers::open(own, &shutdown)).await;
        let Ok(peers) = peers else {
            return;
        };
        select! {
            () = self.accept_all(&listening.socket, Arc::new(peers), stop.clone()) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn accept_all(
        self: Arc<Self>,
        listener: &TcpListener,
        peers: Arc<Peers>,
        stop: CancellationToken,
    ) {
        let unknown = Arc::new(Semaphore::new(defaults::MAX_GUEST_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&unknown).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) if is_closed(&stream) => {}
                Ok((stream, peer)) => {
                    let (service, peers, stop) =
                        (Arc::clone(&self), Arc::clone(&peers), stop.clone());
                    self.shutdown.spawn(async move {
                        let is_allowed = service.is_allowed(&peers, &stream, peer).await;
                        drop(permit);
                        if is_allowed {
                            service.serve_connection(stream, stop).await
                        } else {
                            refuse(&stream)
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(defaults::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Whether the peer is a program of this machine, run by root or the agent's own user.
    async fn is_allowed(&self, peers: &Peers, stream: &TcpStream, peer: SocketAddr) -> bool {
        let user = match stream.local_addr() {
            Ok(own) => peers.user(Ends::new(peer, own)).await,
            Err(error) => Err(error),
        };
        match user {
            Ok(Some(_)) if self.for_all_users => true,
            Ok(Some(user)) if user == 0 || user == geteuid().as_raw() => true,
            Ok(user) => {
                tracing::debug!(user, "refused a user who is not root");
                false
            }
            Err(error) => {
                tracing::error!(%error, "cannot find the user of a connection");
                false
            }
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        let stream = stream.into_std();
        let Ok(stream) = stream.and_then(|stream| Stream::new(stream.into())) else {
            return;
        };
        let Some(permit) = self.connections.enter(false).await else {
            return;
        };
        let answer = |request: Request<Incoming>| -> BoxFuture<'static, Reply> {
            let reply = self.answer(&request);
            let status = reply.status().as_u16();
            tracing::debug!(preset = self.preset.name, status, "request for metadata");
            Box::pin(std::future::ready(reply))
        };
        let stream = Either::Left(stream);
        let serving = connection::serve(stream, stop, &answer);
        let serving = timeout(defaults::GUEST_CONNECTION_TIMEOUT, serving);
        match permit.wait_for(defaults::METADATA_GRACE, serving).await {
            Some(Ok(Err(error))) => tracing::debug!(%error, "a guest's connection ended"),
            None => tracing::debug!("a guest's connection was closed for a newer one"),
            Some(_) => {}
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Reply {
        match self.data.snapshot() {
            None => ApiError::not_found("there are no data").into_plain_reply(),
            Some(snapshot) => {
                let answering = Answering {
                    preset: &self.preset,
                    tokens: &self.tokens,
                    only_with_token: self.only_with_token,
                    snapshot: &snapshot,
                    nics,
                };
                answering.answer(request)
            }
        }
    }
}

/// Whether the client has closed its end and sent nothing, or the connection is broken.
fn is_closed(stream: &TcpStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Ok(length) => length == 0,
        Err(errno) => errno != Errno::EAGAIN,
    }
}

/// Sends the refusal without blocking and without a permit. Does not wait for the socket's readiness
/// either, so it uses the system calls directly.
fn refuse(stream: &TcpStream) {
    let (socket, flags) = (stream.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    // Closing a socket with unread data resets the connection, and the refusal is lost.
    let _ = recv(socket, &mut [0; 1024], flags);
    let _ = send(socket, REFUSAL, flags | MsgFlags::MSG_NOSIGNAL);
}

/// The NICs whose hardware address the host has; without any, the machine's own.
fn nics(snapshot: &Snapshot) -> Vec<Value> {
    let known = snapshot.devices.iter().filter_map(|(key, device)| {
        let text = |name: &str| Some(device.get(name)?.as_str()?.to_owned());
        let is_nic = text("type").is_some_and(|kind| kind == "nic");
        let mac = text("hwaddr").filter(|_| is_nic)?.to_ascii_lowercase();
        let name = text("name").unwrap_or_else(|| key.clone());
        let mut nic = json!({ "name": name, "mac": mac });
        for (name, key) in [
            ("ipv4", "ipv4.address"),
            ("ipv6", "ipv6.address"),
            ("mtu", "mtu"),
        ] {
            if let (Some(value), Some(nic)) = (text(key), nic.as_object_mut()) {
                nic.insert(name.to_owned(), value.into());
            }
        }
        Some(nic)
    });
    let known: Vec<_> = known.collect();
    if !known.is_empty() { known } else { own_nics() }
}

fn own_nics() -> Vec<Value> {
    let links = Rtnetlink::open().and_then(|kernel| kernel.links());
    let ethernet = links
        .unwrap_or_default()
        .into_iter()
        .filter(|link| link.address.len() == 6 && link.address != [0; 6]);
    let nics = ethernet.map(|link| {
        let bytes: Vec<_> = link
            .address
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        json!({ "name": link.name, "mac": bytes.join(":"), "mtu": link.mtu })
    });
    nics.collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::Ipv4Addr,
    };

    use super::*;

    #[tokio::test]
    async fn a_refusal_is_sent_without_waiting_for_readiness() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        refuse(&stream);
        drop(stream);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, REFUSAL);
    }
}
