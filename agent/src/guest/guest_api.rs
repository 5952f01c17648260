//! The door for programs in the guest: what LXD calls `devlxd`, on Unix sockets of root's.
//!
//! It has the instance's data and nothing else of the agent, so nobody gets from here to commands,
//! files or other instances. Answers come from the snapshot. A report of the guest's state waits for
//! the host, and so do the routes that are passed to it.

mod forward;
mod routes;

use std::{
    fs::Permissions,
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use nix::unistd::geteuid;
use tokio::{
    select,
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::{
    either::Either,
    sync::{CancellationToken, DropGuard},
};

use crate::{
    defaults,
    guest::instance_data::InstanceData,
    http::{
        connection,
        listen::{ListenAddress, Listener, Stream},
        reply::Reply,
    },
    shutdown::Shutdown,
    system::root::Root,
};

/// Mode of a folder for a socket: everybody may look, which is how programs find it.
const FOLDER_MODE: u32 = 0o755;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct GuestApi {
    data: InstanceData,
    connections: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    reports: Semaphore,
    forwards: Arc<Semaphore>,
    shutdown: Shutdown,
}

/// Sockets that are there as long as this is; connections end with it.
#[derive(Debug)]
pub(crate) struct OpenSockets(#[expect(dead_code, reason = "held for its `Drop`")] DropGuard);

impl GuestApi {
    /// An API to `data` without a socket.
    pub(crate) fn new(data: InstanceData, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Self {
            data,
            connections: Arc::new(Semaphore::new(defaults::MAX_GUEST_CONNECTIONS)),
            listeners: Arc::new(Semaphore::new(defaults::MAX_GUEST_LISTENERS)),
            reports: Semaphore::new(defaults::MAX_REPORTS),
            forwards: Arc::new(Semaphore::new(defaults::MAX_FORWARDS)),
            shutdown,
        })
    }

    /// Opens the sockets and answers on them.
    ///
    /// # Errors
    ///
    /// The path that cannot be had, and why; none is open then.
    pub(crate) async fn open(
        self: &Arc<Self>,
        paths: &[PathBuf],
    ) -> Result<OpenSockets, (PathBuf, io::Error)> {
        let mut listeners = Vec::new();
        for path in paths {
            let listener = open(path).await.map_err(|error| (path.clone(), error))?;
            tracing::info!(path = %path.display(), "serving instance data");
            listeners.push(listener);
        }
        let stop = self.shutdown.child_token();
        for listener in listeners {
            let accepting = Arc::clone(self).accept_all(listener, stop.clone());
            self.shutdown.spawn(accepting);
        }
        Ok(OpenSockets(stop.drop_guard()))
    }

    async fn accept_all(self: Arc<Self>, listener: Listener, stop: CancellationToken) {
        loop {
            // Those who find no place wait in the kernel's queue.
            let accepted = async {
                let place = Arc::clone(&self.connections).acquire_owned().await;
                (place, listener.accept().await)
            };
            let accepted = select! {
                accepted = accepted => accepted,
                () = stop.cancelled() => return,
            };
            let (Ok(place), accepted) = accepted else {
                return;
            };
            match accepted {
                Ok((stream, _)) if is_root(&stream) => {
                    let connection = Arc::clone(&self).serve(stream, stop.clone());
                    self.shutdown.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Ok(_) => tracing::warn!("a user who is not root asks for instance data"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(defaults::ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: Stream, stop: CancellationToken) {
        let begun = Instant::now();
        let seconds = defaults::GUEST_CONNECTION_TIMEOUT.as_secs();
        let seconds = Arc::new(AtomicU64::new(seconds));
        let answer = |request| -> BoxFuture<'static, Reply> {
            let (api, seconds, stop) = (Arc::clone(&self), Arc::clone(&seconds), stop.clone());
            Box::pin(async move {
                let extend = |limit: Duration| {
                    seconds.fetch_max(limit.as_secs(), Ordering::Relaxed);
                };
                routes::route(&api, request, stop, &extend).await
            })
        };
        let serving = connection::serve(Either::Left(stream), stop.clone(), &answer);
        let mut serving = std::pin::pin!(serving);
        let ended = loop {
            let limit = Duration::from_secs(seconds.load(Ordering::Relaxed));
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            select! {
                ended = serving.as_mut() => break ended,
                // The limit may have become another one.
                () = sleep(left) => {}
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a guest's connection ended");
        }
    }
}

/// Whether the peer is root, or who the agent runs as. The socket's mode says so already.
fn is_root(stream: &Stream) -> bool {
    let peer = stream.peer_uid();
    peer.is_ok_and(|uid| uid == 0 || uid == geteuid().as_raw())
}

async fn open(path: &Path) -> io::Result<Listener> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !folder.is_dir() {
        let made = Root::open(Path::new("/"))?.make_folder(&std::path::absolute(folder)?)?;
        // The mask of the agent may have taken something from it.
        let made = format!("/proc/self/fd/{}", made.as_raw_fd());
        std::fs::set_permissions(made, Permissions::from_mode(FOLDER_MODE))?;
    }
    let listener = Listener::bind(&ListenAddress::Unix(path.to_owned())).await?;
    if folder.file_name().is_some_and(|name| name == "incus") {
        // Where programs made for LXD look; something else may be there, and stays.
        let link = folder.with_file_name("lxd");
        if let Err(error) = std::os::unix::fs::symlink("incus", &link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, link = %link.display(), "cannot make the link");
        }
    }
    Ok(listener)
}
