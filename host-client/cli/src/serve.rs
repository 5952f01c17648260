//! `serve`: the host process, and what it knows.

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

use crate::{
    args::{Format, ServeArgs},
    config::Settings,
    output,
    signals::Signals,
};

/// Held by the one process that serves this configuration.
const LOCK_FILE: &str = "serve.lock";

/// What it knows of the guests.
const STATUS_FILE: &str = "serve.json";

/// Time between two looks at the configuration and the certificates.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often, and after what pause, the lock is tried again.
const LOCK_TRIES: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// `agent-cli serve`.
pub(crate) async fn run(settings: &Settings, args: ServeArgs) -> anyhow::Result<u8> {
    if args.status {
        print_status(settings, args.format.value())
    } else {
        serve(settings, args.port).await
    }
}

async fn serve(settings: &Settings, port: u32) -> anyhow::Result<u8> {
    // Asked for first, so that no signal is missed.
    let mut signals = Signals::of(&[libc::SIGTERM, libc::SIGINT])?;
    let Some(_lock) = lock_patiently(settings).await? else {
        bail!("another `agent-cli serve` runs with this configuration");
    };
    let mut host = HostProcess::new(HostConfig {
        port,
        store: settings.instances()?,
        location: gethostname()
            .map_or_else(|_| "a host".to_owned(), |name| name.display().to_string()),
        status: settings.host_file(STATUS_FILE)?,
        is_registered: is_registered(settings),
    });
    let mut seen = stamps(settings);
    host.set_guests(guests(settings)).await;
    notify("READY=1");
    info!(port, "serving");
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fresh: Option<Settings> = None;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = signals.next() => break,
        }
        let now = stamps(fresh.as_ref().unwrap_or(settings));
        if now == seen {
            continue;
        }
        match Settings::new(settings.global().clone()) {
            Ok(changed) => {
                // Others may be named in it.
                seen = stamps(&changed);
                host.set_guests(guests(&changed)).await;
                fresh = Some(changed);
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

/// Tells whether a machine is named in the configuration as it is now. What cannot be read now was
/// read a moment ago.
fn is_registered(settings: &Settings) -> IsRegistered {
    let global = settings.global().clone();
    Box::new(move |name| {
        let now = Settings::new(global.clone());
        now.map_or(true, |now| now.known(name).is_ok())
    })
}

/// The guests of the configuration. One that cannot be served is logged and left out.
fn guests(settings: &Settings) -> Vec<Guest> {
    let names = settings.names();
    names
        .filter_map(|name| match guest(settings, name) {
            Ok(guest) => Some(guest),
            Err(error) => {
                warn!(guest = name, error = format!("{error:#}"), "not served");
                None
            }
        })
        .collect()
}

fn guest(settings: &Settings, name: &str) -> anyhow::Result<Guest> {
    let target = settings.target(settings.known(name)?)?;
    let tls = if target.is_plain() {
        None
    } else {
        Some(GuestTls::from_pem(&target.identity_files()?.read()?)?)
    };
    Ok(Guest {
        name: name.to_owned(),
        endpoint: target.endpoint().clone(),
        security: target.security(name)?,
        tls,
        revision: revision(settings, name),
    })
}

/// The versions of the files that say how a guest is known.
fn revision(settings: &Settings, name: &str) -> Vec<Option<Stamp>> {
    match settings.target(name) {
        Ok(target) if !target.is_plain() => {
            let files = target.identity_files().ok();
            let paths = files.map(|files| [files.certificate, files.key, files.agent]);
            let paths = paths.into_iter().flatten();
            paths.map(|path| Stamp::of(&path)).collect()
        }
        _ => Vec::new(),
    }
}

/// The versions of all files that guests are known by.
fn stamps(settings: &Settings) -> Vec<Option<Stamp>> {
    let revisions = settings.names().flat_map(|name| revision(settings, name));
    [settings.stamp()].into_iter().chain(revisions).collect()
}

/// Takes the lock, so that only one process serves. Retries for a moment, because a process that only
/// checks whether another one serves holds the lock briefly.
async fn lock_patiently(settings: &Settings) -> anyhow::Result<Option<fs::File>> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = lock(settings)? {
            return Ok(Some(lock));
        }
        sleep(LOCK_PAUSE).await;
    }
    lock(settings)
}

/// Tries to take the lock.
fn lock(settings: &Settings) -> anyhow::Result<Option<fs::File>> {
    let path = settings.host_file(LOCK_FILE)?;
    let open = || {
        path.parent().map_or(Ok(()), private_directory)?;
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

/// What the host process knows; `None` if it never ran.
pub(crate) fn report(settings: &Settings) -> Option<StatusReport> {
    StatusReport::read(&settings.host_file(STATUS_FILE).ok()?)
}

fn print_status(settings: &Settings, format: Format) -> anyhow::Result<u8> {
    let is_running = lock(settings)?.is_none();
    let report = report(settings).unwrap_or_default();
    if format == Format::Json {
        output::json(&json!({ "running": is_running, "last": report }))?;
        return Ok(0);
    }
    output::line(&if is_running {
        format!("running, process {}, port {}", report.pid, report.port)
    } else {
        "not running; what it knew last:".to_owned()
    })?;
    let rows: Vec<Vec<String>> = report
        .guests
        .into_iter()
        .map(|(name, guest)| {
            let agent = guest.agent.or(guest.error).unwrap_or_default();
            vec![
                name,
                guest.endpoint,
                guest.guest.state.name().to_owned(),
                agent,
            ]
        })
        .collect();
    for row in output::table(&rows) {
        output::line(&row)?;
    }
    Ok(0)
}

/// Tells systemd how far we are, if it asked (`sd_notify(3)`).
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
        sendto(
            from.as_raw_fd(),
            state.as_bytes(),
            &to,
            MsgFlags::MSG_NOSIGNAL,
        )
    };
    if let Err(error) = send() {
        warn!(%error, "cannot tell the service manager");
    }
}
