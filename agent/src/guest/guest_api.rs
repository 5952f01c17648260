//! The guest API, LXD's `devlxd`, on Unix sockets that root may connect to.
//!
//! It has access to the instance data only, not to commands or files. Replies come from the snapshot, but
//! for `PATCH /1.0` and forwarded routes, which wait for the host.

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

use vsock_agent_transport::{Listener, Stream};

use crate::{
    defaults,
    guest::instance_data::InstanceData,
    http::{
        connection,
        listen::{self, ListenAddress},
        reply::Reply,
    },
    shutdown::Shutdown,
    system::root::Root,
};

/// Mode of the directory of a socket: all users can see whether the socket exists.
const FOLDER_MODE: u32 = 0o755;

/// LXD's content type of values, and the character set: without it cloud-init guesses, and
/// `charset_normalizer` takes short texts for Windows-1252.
const VALUE: &str = "application/octet-stream; charset=utf-8";

/// State that all connections share.
#[derive(Debug)]
pub(crate) struct GuestApi {
    data: InstanceData,
    connections: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    reports: Semaphore,
    forwards: Arc<Semaphore>,
    shutdown: Shutdown,
}

/// Open sockets. They and their connections are closed on drop.
#[derive(Debug)]
pub(crate) struct OpenSockets(#[expect(dead_code, reason = "held for its `Drop`")] DropGuard);

impl GuestApi {
    /// A guest API without sockets. [`GuestApi::open`] opens them.
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

    /// Binds the sockets and serves them.
    ///
    /// # Errors
    ///
    /// The path that cannot be bound, and the error. No socket is open then.
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
            // Without a permit, connections wait in the kernel's queue.
            let accepted = async {
                let permit = Arc::clone(&self.connections).acquire_owned().await;
                (permit, listener.accept(listen::log_failure).await)
            };
            let accepted = select! {
                accepted = accepted => accepted,
                () = stop.cancelled() => return,
            };
            let (Ok(permit), (stream, _)) = accepted else {
                return;
            };
            if is_root(&stream) {
                let connection = Arc::clone(&self).serve(stream, stop.clone());
                self.shutdown.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            } else {
                tracing::warn!("refused a connection of a user other than root");
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: Stream, stop: CancellationToken) {
        let started = Instant::now();
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
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return;
            }
            select! {
                ended = serving.as_mut() => break ended,
                // The limit may have been extended.
                () = sleep(left) => {}
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a guest's connection ended");
        }
    }
}

/// Whether the peer is root or the agent's user. The mode of the socket requires this, too.
fn is_root(stream: &Stream) -> bool {
    let peer = stream.peer_uid();
    peer.is_ok_and(|uid| uid == 0 || uid == geteuid().as_raw())
}

async fn open(path: &Path) -> io::Result<Listener> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !folder.is_dir() {
        let made = Root::open(Path::new("/"))?.make_folder(&std::path::absolute(folder)?)?;
        // The umask may have cleared bits.
        let made = format!("/proc/self/fd/{}", made.as_raw_fd());
        std::fs::set_permissions(made, Permissions::from_mode(FOLDER_MODE))?;
    }
    let listener = listen::bind(&ListenAddress::Unix(path.to_owned())).await?;
    if folder.file_name().is_some_and(|name| name == "incus") {
        // For programs that use LXD's path. An existing file is kept.
        let link = folder.with_file_name("lxd");
        if let Err(error) = std::os::unix::fs::symlink("incus", &link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, link = %link.display(), "cannot create the link");
        }
    }
    Ok(listener)
}
