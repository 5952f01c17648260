//! `GET /1.0/sftp`: upgrades the connection to SFTP.

use std::{io, os::unix::net::UnixStream, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use hyper::{
    body::Incoming,
    upgrade::{Parts, Upgraded},
};
use hyper_util::rt::TokioIo;
use nix::{errno::Errno, unistd::Uid};
use tokio::{
    io::copy_bidirectional_with_sizes,
    select,
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};
use tokio_rustls::TlsStream;
use tokio_util::{either::Either, sync::CancellationToken};
use vsock_agent_protocol::{sftp::SessionOptions, version::Family};

use crate::{
    app::App,
    defaults,
    http::{
        client,
        connection::Transport,
        reply::{ApiError, Reply, switching_protocols},
    },
    sftp::{Budget, Channel, Session, Setup, SftpServerError, UserSession, blocking, find_user},
    shutdown::Shutdown,
    system::{accounts::Accounts, bounded::within},
};

/// The protocol's name in `Upgrade`.
const PROTOCOL: &str = "sftp";

/// The SFTP server of a session.
enum Backend {
    InProcess(Setup),
    /// A process of another user, and the socket to it.
    OfUser(UserSession, UnixStream),
}

/// Upgrades the connection to SFTP, with the options in the query. Bytes after the request are the first of
/// the session.
///
/// # Errors
///
/// 400 without `Upgrade: sftp`, for an invalid query, and for a user or a directory that does not exist;
/// 403 for another user when the agent is not root; 501 when the kernel cannot confine a session to a
/// directory; 503 when there are too many sessions; 504 when opening the directory times out.
pub(crate) async fn get(
    app: &Arc<App>,
    mut request: Request<Incoming>,
    query: &str,
) -> Result<Reply, ApiError> {
    if request
        .headers()
        .get(header::UPGRADE)
        .is_none_or(|upgrade| upgrade != PROTOCOL)
    {
        return Err(ApiError::bad_request(
            "Missing or invalid upgrade header: it must be sftp",
        ));
    }
    let client = client::of(&request);
    let options = SessionOptions::from_query(query)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    let permit = Arc::clone(&app.sftp_sessions)
        .try_acquire_owned()
        .map_err(|_| {
            let limit = defaults::MAX_SFTP_SESSIONS;
            ApiError::busy(format!("too many SFTP sessions: {limit} are open"))
        })?;
    let user = options.user.clone();
    let (backend, permit) = prepare(app, options, permit).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let stop = match &client {
        Some(client) => client.stop.clone(),
        None => app.shutdown.child_token(),
    };
    let who = client
        .as_ref()
        .map_or_else(String::new, |client| client.to_string());
    let shutdown = app.shutdown.clone();
    app.shutdown.spawn(async move {
        // Holds the client, so that it can be closed when it is no longer admitted.
        let _client = client;
        let Ok(Ok(upgraded)) = timeout(defaults::UPGRADE_TIMEOUT, upgrade).await else {
            return;
        };
        let start = Instant::now();
        tracing::info!(who, user, "an SFTP session starts");
        match backend {
            Backend::InProcess(setup) => {
                serve(&shutdown, upgraded, setup, permit, stop).await;
            }
            Backend::OfUser(process, socket) => {
                relay(upgraded, socket, stop).await;
                drop((process, permit));
            }
        }
        let seconds = start.elapsed().as_secs_f32();
        tracing::info!(who, user, seconds, "an SFTP session is over");
    });
    Ok(switching_protocols(PROTOCOL))
}

/// Opens the backend before the upgrade, so that a failure is an HTTP error. A directory on a file system
/// that does not respond holds `permit`, and blocks nothing else.
async fn prepare(
    app: &App,
    options: SessionOptions,
    permit: OwnedSemaphorePermit,
) -> Result<(Backend, OwnedSemaphorePermit), ApiError> {
    let budget = Arc::clone(&app.sftp_budget);
    // Incus's agent has `/` as its working directory, and its hosts omit the first slash when they create
    // the parent folders of a file.
    let starts_at_root = app.family == Family::Incus;
    let work = move || {
        let backend = open_backend(&options, starts_at_root, budget)?;
        Ok((backend, permit))
    };
    let prepared = within(defaults::SFTP_START_TIMEOUT, "start of SFTP", work);
    prepared.await.unwrap_or_else(|| {
        Err(ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "opening the directory of the session timed out",
        ))
    })
}

fn open_backend(
    options: &SessionOptions,
    starts_at_root: bool,
    budget: Arc<Budget>,
) -> Result<Backend, ApiError> {
    let setup = |home: PathBuf| {
        let home = Some(home)
            .filter(|home| home.is_dir())
            .unwrap_or("/".into());
        let setup = Setup::new(options.clone(), &home, budget);
        setup.map_err(|error| refuse_root(options, &error))
    };
    let user = match &options.user {
        Some(name) => Some(find_user(name).map_err(refuse_user)?.0),
        None => None,
    };
    match user {
        None if starts_at_root => setup("/".into()).map(Backend::InProcess),
        None => setup(home()).map(Backend::InProcess),
        Some(user) if user.uid == Uid::effective().as_raw() => {
            setup(user.home.into()).map(Backend::InProcess)
        }
        Some(_) if !Uid::effective().is_root() => Err(ApiError::forbidden(
            "the agent is not root and cannot become another user",
        )),
        Some(_) => {
            // The user's process looks up the home. This reports a missing root before the upgrade.
            setup("/".into())?;
            let (process, socket) = UserSession::start(options)
                .map_err(|error| failed("the session's process cannot start", &error))?;
            Ok(Backend::OfUser(process, socket))
        }
    }
}

fn refuse_user(error: SftpServerError) -> ApiError {
    match error {
        SftpServerError::UnknownUser(_) => ApiError::bad_request(error.to_string()),
        error => failed("the accounts cannot be read", &error),
    }
}

fn refuse_root(options: &SessionOptions, error: &io::Error) -> ApiError {
    let root = options.root.as_deref().unwrap_or("/");
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::ENOSYS => ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "confining a session to a directory requires Linux 5.6",
        ),
        _ => ApiError::bad_request(format!("cannot serve from {root}: {error}")),
    }
}

fn failed(what: &str, error: &dyn std::error::Error) -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("{what}: {error}"),
    )
}

/// The base of relative paths: the home of the agent's user.
fn home() -> PathBuf {
    let uid = Uid::effective();
    if uid.is_root() {
        return "/root".into();
    }
    // `std::env::home_dir` would use NSS, which a static binary does not have.
    let own = || Some(Accounts::read().ok()?.user_numbered(uid.as_raw())?.home);
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.or_else(|| own().map(Into::into))
        .unwrap_or_default()
        .into()
}

/// Serves the client until it disconnects or `stop` is cancelled.
async fn serve(
    shutdown: &Shutdown,
    upgraded: Upgraded,
    setup: Setup,
    permit: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let upgraded = match upgraded.downcast::<TokioIo<Transport>>() {
        Ok(parts) => channel(parts),
        // A stream of HTTP/2 has no socket of its own.
        Err(upgraded) => socket_pair(shutdown, upgraded, stop.clone()),
    };
    let started = upgraded.and_then(|(channel, read_ahead)| {
        Session::start(channel, &read_ahead, setup, Some(permit))
    });
    let (session, mut over) = match started {
        Ok(started) => started,
        Err(error) => {
            tracing::warn!(%error, "an SFTP session cannot start");
            return;
        }
    };
    let ended = select! {
        ended = &mut over => ended,
        () = stop.cancelled() => {
            // Closing files may block.
            within(defaults::SFTP_START_TIMEOUT, "end of SFTP", move || session.stop()).await;
            over.await
        }
    };
    tracing::info!(?ended, "an SFTP session ended");
}

/// Copies between the client and the process of its session until either closes or `stop` is cancelled.
async fn relay(upgraded: Upgraded, socket: UnixStream, stop: CancellationToken) {
    let copy = async {
        socket.set_nonblocking(true)?;
        let mut socket = tokio::net::UnixStream::from_std(socket)?;
        let size = defaults::FORWARD_BUFFER_BYTES;
        let mut client = TokioIo::new(upgraded);
        copy_bidirectional_with_sizes(&mut client, &mut socket, size, size).await
    };
    let ended = select! {
        ended = copy => ended,
        () = stop.cancelled() => return,
    };
    tracing::info!(?ended, "an SFTP session of a user ended");
}

/// Takes the socket, and the bytes that were read already, from hyper and tokio. The result has a duplicate
/// of the descriptor, in blocking mode; tokio's is closed here.
fn channel(parts: Parts<TokioIo<Transport>>) -> io::Result<(Channel, Bytes)> {
    let unknown = || io::Error::other("the connection is of an unknown kind");
    let channel = match parts.io.into_inner() {
        Either::Left(stream) => Channel::plain(blocking(&stream)?),
        Either::Right(TlsStream::Server(stream)) => {
            let (stream, tls) = stream.into_inner();
            Channel::tls(blocking(&stream)?, tls)
        }
        Either::Right(TlsStream::Client(_)) => return Err(unknown()),
    };
    Ok((channel, parts.read_buf))
}

/// Makes a socket of a stream of HTTP/2, by copying.
fn socket_pair(
    shutdown: &Shutdown,
    upgraded: Upgraded,
    stop: CancellationToken,
) -> io::Result<(Channel, Bytes)> {
    let (ours, theirs) = UnixStream::pair()?;
    let channel = Channel::plain(blocking(&ours)?);
    shutdown.spawn(relay(upgraded, theirs, stop));
    Ok((channel, Bytes::new()))
}
