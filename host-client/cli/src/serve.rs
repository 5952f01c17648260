//! `serve`: the host process, and its status.

use std::{
    fs,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket},
    unistd::gethostname,
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};
use vsock_agent_files::private_directory;
use vsock_agent_serve::{
    Guest, GuestTls, HostConfig, HostProcess, IsRegistered, StatusReport, instance::Stamp,
};

use crate::{args::ServeArgs, config::Settings, output, signals::Signals};

/// Locked by the process that serves this configuration.
const LOCK_FILE: &str = "serve.lock";

/// The state of the guests.
const STATUS_FILE: &str = "serve.json";

/// Time between two polls of the configuration and the certificates.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often the lock is tried again, and the pause before each try.
const LOCK_RETRIES: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// `agent-cli serve`.
pub(crate) async fn run(settings: &Settings, args: ServeArgs) -> anyhow::Result<u8> {
    if args.status {
        print_status(settings, args.format.is_json())
    } else {
        serve(settings, args.port).await
    }
}

async fn serve(settings: &Settings, port: u32) -> anyhow::Result<u8> {
    // First, so that no signal is missed.
    let mut signals = Signals::of(&[libc::SIGTERM, libc::SIGINT])?;
    let Some(_lock) = lock_with_retries(settings).await? else {
        bail!("another `agent-cli serve` runs with this configuration");
    };
    let mut host = HostProcess::new(HostConfig {
        port,
        store: settings.instances()?,
        location: gethostname()
            .map_or_else(|_| "a host".to_owned(), |name| name.display().to_string()),
        status: settings.directory()?.join(STATUS_FILE),
        is_registered: is_registered(settings),
    });
    let mut seen = stamps(settings);
    host.set_guests(guests(settings)).await;
    notify("READY=1");
    info!(port, "serving");
    let mut poll = interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reloaded: Option<Settings> = None;
    loop {
        tokio::select! {
            _ = poll.tick() => {}
            _ = signals.next() => break,
        }
        let now = stamps(reloaded.as_ref().unwrap_or(settings));
        if now == seen {
            continue;
        }
        match Settings::new(settings.global.clone()) {
            Ok(changed) => {
                // Again, because the set of files may have changed.
                seen = stamps(&changed);
                host.set_guests(guests(&changed)).await;
                reloaded = Some(changed);
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the configuration cannot be used"
                );
                seen = now;
            }
        }
    }
    notify("STOPPING=1");
    info!("stopping");
    host.stop().await;
    Ok(0)
}

/// Returns a function that checks whether the current configuration file names a virtual machine. If
/// the file cannot be read, the function returns true, because `serve` knew the name before.
fn is_registered(settings: &Settings) -> IsRegistered {
    let global = settings.global.clone();
    Box::new(move |name| {
        let now = Settings::new(global.clone());
        now.map_or(true, |now| now.known(name).is_ok())
    })
}

/// The guests of the configuration. A guest that cannot be served is logged and omitted.
fn guests(settings: &Settings) -> Vec<Guest> {
    let log = |name: &str, error| warn!(guest = name, error = format!("{error:#}"), "not served");
    let guests = settings.names().map(|name| (name, guest(settings, name)));
    guests
        .filter_map(|(name, guest)| guest.map_err(|error| log(name, error)).ok())
        .collect()
}

fn guest(settings: &Settings, name: &str) -> anyhow::Result<Guest> {
    let target = settings.target(settings.known(name)?)?;
    let tls = if target.plain {
        None
    } else {
        Some(GuestTls::from_pem(&target.identity_files()?.read()?)?)
    };
    Ok(Guest {
        name: name.to_owned(),
        security: target.security()?,
        endpoint: target.endpoint,
        tls,
        revision: revision(settings, name),
    })
}

/// The versions of the identity files of a guest.
fn revision(settings: &Settings, name: &str) -> Vec<Option<Stamp>> {
    match settings.target(name) {
        Ok(target) if !target.plain => {
            let files = target.identity_files().ok();
            let paths = files.map(|files| [files.certificate, files.key, files.agent]);
            let paths = paths.into_iter().flatten();
            paths.map(|path| Stamp::of(&path)).collect()
        }
        _ => Vec::new(),
    }
}

/// The versions of the configuration file and of all identity files.
fn stamps(settings: &Settings) -> Vec<Option<Stamp>> {
    let revisions = settings.names().flat_map(|name| revision(settings, name));
    [settings.stamp()].into_iter().chain(revisions).collect()
}

/// Takes the lock. Retries, because `serve --status` holds the lock briefly.
async fn lock_with_retries(settings: &Settings) -> anyhow::Result<Option<fs::File>> {
    for _ in 0..LOCK_RETRIES {
        if let Some(lock) = lock(settings)? {
            return Ok(Some(lock));
        }
        sleep(LOCK_PAUSE).await;
    }
    lock(settings)
}

/// Tries to take the lock. Returns `None` if another process holds it.
fn lock(settings: &Settings) -> anyhow::Result<Option<fs::File>> {
    let directory = settings.directory()?;
    let path = directory.join(LOCK_FILE);
    let open = || {
        private_directory(&directory)?;
        fs::OpenOptions::new().create(true).append(true).open(&path)
    };
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Reads the status that the host process recorded; `None` if it never ran.
pub(crate) fn report(settings: &Settings) -> Option<StatusReport> {
    StatusReport::read(&settings.directory().ok()?.join(STATUS_FILE))
}

fn print_status(settings: &Settings, is_json: bool) -> anyhow::Result<u8> {
    let is_running = lock(settings)?.is_none();
    let report = report(settings).unwrap_or_default();
    if is_json {
        output::json(&json!({ "running": is_running, "last": report }))?;
        return Ok(0);
    }
    output::line(&if is_running {
        format!("running, process {}, port {}", report.pid, report.port)
    } else {
        "not running; last recorded state:".to_owned()
    })?;
    let rows = report.guests.into_iter().map(|(name, guest)| {
        let agent = guest.agent.or(guest.error).unwrap_or_default();
        let state = guest.guest.state.name().to_owned();
        vec![name, guest.endpoint, state, agent]
    });
    output::lines(output::table(&Vec::from_iter(rows)))?;
    Ok(0)
}

/// Sends a state to systemd if `NOTIFY_SOCKET` is set (`sd_notify(3)`).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let send = || {
        let to = match path.as_bytes().split_first() {
            Some((b'@', name)) => UnixAddr::new_abstract(name)?,
            _ => UnixAddr::new(&path[..])?,
        };
        let flags = SockFlag::SOCK_CLOEXEC;
        let from = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        let (fd, flags) = (from.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        sendto(fd, state.as_bytes(), &to, flags)
    };
    if let Err(error) = send() {
        warn!(%error, "cannot notify the service manager");
    }
}
