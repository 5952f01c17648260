//! Metadata services of other clouds, for programs in the guest that know no other: each is a
//! preset, a file that says where it listens and what it answers from the instance's data.
//!
//! ```text
//! file ─► Preset ─► place    an address on the loopback, where no real cloud is
//!                   peer     only root may ask
//!                   answer ─► token, table ─► template, shape ─► scope ─► the snapshot
//! ```
//!
//! Has the instance's data and nothing else of the agent, as the guest API does. Off unless one is
//! named in the configuration.

mod answer;
mod file;
mod peer;
mod place;
mod preset;
mod scope;
mod shape;
mod table;
mod template;
mod token;

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    select,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{
    either::Either,
    sync::{CancellationToken, DropGuard},
};

use self::{
    answer::Answering,
    place::{Place, PlaceError},
    token::Tokens,
};
use crate::{
    defaults, http_connection,
    instance_data::{InstanceData, Snapshot},
    reply::{ApiError, Reply},
    rtnetlink::Rtnetlink,
    shutdown::Shutdown,
};

pub use self::preset::{Preset, PresetError};

/// What somebody who may not ask reads.
const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 18\r\nConnection: close\r\n\r\nonly root may ask\n";

/// Which services there are, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PresetConfig {
    /// The services.
    pub presets: Vec<Arc<Preset>>,
    /// Whether those that know tokens say nothing without one.
    pub only_with_token: bool,
    /// Whether every user of the guest may ask, and not root alone.
    pub for_all_users: bool,
}

/// The services, as yet without a socket.
#[derive(Debug)]
pub(crate) struct Presets {
    config: PresetConfig,
    data: InstanceData,
    root: PathBuf,
    shutdown: Shutdown,
}

/// Services that are there as long as this is.
#[derive(Debug)]
pub(crate) struct OpenPresets {
    _stop: DropGuard,
    _places: Vec<Place>,
}

/// One service that is there.
#[derive(Debug)]
struct Service {
    preset: Arc<Preset>,
    tokens: Tokens,
    only_with_token: bool,
    for_all_users: bool,
    data: InstanceData,
    shutdown: Shutdown,
}

impl Presets {
    /// Services that answer from `data`. `root` is the guest's `/`.
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
        }
    }

    /// Puts the addresses on the loopback and answers there. What cannot be had is logged and passed
    /// over.
    pub(crate) async fn open(&self) -> OpenPresets {
        let stop = self.shutdown.child_token();
        let mut places = Vec::new();
        for preset in &self.config.presets {
            let (name, address) = (&preset.name, SocketAddr::from(preset.address()));
            match listen(&self.root, address).await {
                Ok((place, listener)) => {
                    tracing::info!(preset = name, %address, "serving metadata");
                    places.push(place);
                    self.serve(Arc::clone(preset), listener, &stop);
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::error!(preset = name, %error, cause, "this is not served");
                }
            }
        }
        OpenPresets {
            _stop: stop.drop_guard(),
            _places: places,
        }
    }

    fn serve(&self, preset: Arc<Preset>, listener: TcpListener, stop: &CancellationToken) {
        let Some(tokens) = Tokens::new() else {
            tracing::error!("there are no random numbers for tokens");
            return;
        };
        let service = Arc::new(Service {
            preset,
            tokens,
            only_with_token: self.config.only_with_token,
            for_all_users: self.config.for_all_users,
            data: self.data.clone(),
            shutdown: self.shutdown.clone(),
        });
        self.shutdown
            .spawn(service.accept_all(listener, stop.clone()));
    }
}

async fn listen(root: &Path, address: SocketAddr) -> Result<(Place, TcpListener), PlaceError> {
    let place = Place::take(root, address).await?;
    let listener = place.listen(address.port())?;
    Ok((place, listener))
}

impl Service {
    async fn accept_all(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(defaults::MAX_GUEST_CONNECTIONS));
        loop {
            let accepted = select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, peer)) if self.may_ask(&stream, peer) => stream,
                Ok((stream, _)) => {
                    refuse(&stream);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(defaults::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (Ok(place), Ok(stream)) =
                (Arc::clone(&places).acquire_owned().await, as_unix(stream))
            else {
                continue;
            };
            let connection = Arc::clone(&self).answer_all(stream, stop.clone());
            self.shutdown.spawn(async move {
                connection.await;
                drop(place);
            });
        }
    }

    /// Whether the peer is a program of this machine, and of root's or of who the agent runs as.
    fn may_ask(&self, stream: &TcpStream, peer: SocketAddr) -> bool {
        let user = stream.local_addr().and_then(|own| peer::user(peer, own));
        match user {
            Ok(Some(_)) if self.for_all_users => true,
            Ok(Some(user)) if user == 0 || user == geteuid().as_raw() => true,
            Ok(user) => {
                tracing::debug!(user, "somebody who is not root asks for metadata");
                false
            }
            Err(error) => {
                tracing::error!(%error, "cannot find out who asks for metadata");
                false
            }
        }
    }

    async fn answer_all(self: Arc<Self>, stream: UnixStream, stop: CancellationToken) {
        let answer = |request: Request<Incoming>| -> BoxFuture<'static, Reply> {
            let reply = self.answer(&request);
            let status = reply.status().as_u16();
            tracing::debug!(preset = self.preset.name, status, "request for metadata");
            Box::pin(std::future::ready(reply))
        };
        let stream = Either::Left(Either::Right(stream));
        let serving = http_connection::serve(stream, stop, &answer);
        if let Ok(Err(error)) = timeout(defaults::GUEST_CONNECTION_TIMEOUT, serving).await {
            tracing::debug!(%error, "a guest's connection ended");
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

/// The same socket under another name: the kernel reads and writes both alike, and all of HTTP is in
/// the program for connections of this type already.
fn as_unix(stream: TcpStream) -> io::Result<UnixStream> {
    // Both are non-blocking, and stay so.
    UnixStream::from_std(OwnedFd::from(stream.into_std()?).into())
}

/// Says no without taking a place, or waiting for anything.
fn refuse(stream: &TcpStream) {
    let mut request = [0; 1024];
    // What is left unread would make the kernel take the refusal back.
    let _ = stream.try_read(&mut request);
    let _ = stream.try_write(REFUSAL);
}

/// The network devices that the host knows the address of, or else those that are there.
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
    match known.is_empty() {
        false => known,
        true => own_nics(),
    }
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
