//! The process: its socket, and when it ends.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use nix::unistd::{dup2_stdout, setsid};
use tokio::{
    net::UnixStream,
    select,
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use vsock_agent_transport::{SocketFile, accept};

use super::{
    connections::Connections,
    message::{self, Agent, Reply, Request, Status},
    persist::Persist,
    place::{Place, check_user},
    start::{LISTENING, RUNNING},
};

/// Most calls at a time. With the streams of each, an agent of ours takes all on one connection.
const MAX_CALLS: usize = 256;

/// Time for a call to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the process looks whether its socket is there, and whether it was used.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What the calls share.
#[derive(Debug, Default)]
struct Shared {
    connections: Connections,
    /// When to end.
    stop: CancellationToken,
    /// The socket is removed.
    removed: CancellationToken,
}

/// `agent-cli mux run`.
pub(super) async fn run(Persist(persist): Persist) -> anyhow::Result<u8> {
    // Fails if it leads a session already, as one that was started by hand.
    let _ = setsid();
    let (listener, file) = match Place::new()?.listen().await {
        Ok(listening) => listening,
        Err(error) => {
            tell(&reason(&error))?;
            return Err(error);
        }
    };
    tell(LISTENING)?;
    let file = Arc::new(file);
    let shared = Arc::new(Shared::default());
    let calls = TaskTracker::new();
    let admitted = Arc::new(Semaphore::new(MAX_CALLS));
    let accepting = async {
        loop {
            let failed = |error: &io::Error| debug!(%error, "cannot accept a call");
            let (socket, _) = accept(|| listener.accept(), failed).await;
            // One too many is closed, and connects itself.
            if let Ok(permit) = Arc::clone(&admitted).try_acquire_owned() {
                let shared = Arc::clone(&shared);
                calls.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = serve(socket, &shared).await {
                        debug!(error = format!("{error:#}"), "a call failed");
                    }
                });
            }
        }
    };
    select! {
        () = accepting => {}
        () = until_unused(&file, &shared, &calls, persist) => {}
        () = shared.stop.cancelled() => {}
    }
    // Calls connect themselves from now on; those that are under way go on.
    drop(listener);
    drop(file);
    shared.removed.cancel();
    calls.close();
    calls.wait().await;
    Ok(0)
}

/// Tells the process that started this one, and lets it go on.
fn tell(text: &str) -> anyhow::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    // There may be nobody who listens.
    let _ = writeln!(io::stdout(), "{text}");
    dup2_stdout(null).context("cannot close the standard output")
}

fn reason(error: &anyhow::Error) -> String {
    let is_running = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    if is_running {
        RUNNING.to_owned()
    } else {
        format!("{error:#}")
    }
}

/// Waits until there was no call for `persist`, or the socket is gone. Closes connections that are not used.
async fn until_unused(
    file: &Arc<SocketFile>,
    shared: &Shared,
    calls: &TaskTracker,
    persist: Duration,
) {
    let mut poll = interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut used = Instant::now();
    loop {
        poll.tick().await;
        // In memory, in a directory of this user's session: it does not block.
        if !file.is_there() {
            return;
        }
        shared.connections.close_unused(persist);
        if !calls.is_empty() {
            used = Instant::now();
        } else if used.elapsed() >= persist {
            return;
        }
    }
}

/// Serves one call.
async fn serve(mut socket: UnixStream, shared: &Shared) -> anyhow::Result<()> {
    check_user(socket.peer_cred()?.uid())?;
    let request = timeout(REQUEST_TIMEOUT, message::receive(&mut socket)).await??;
    let reply = match request {
        Request::Call(agent) => return call(socket, agent, shared).await,
        Request::Status => Reply::Status(Status {
            pid: std::process::id(),
            connections: shared.connections.listed(),
        }),
        Request::Stop => {
            shared.stop.cancel();
            shared.removed.cancelled().await;
            Reply::Stopped
        }
    };
    Ok(message::send(&mut socket, &reply).await?)
}

async fn call(mut socket: UnixStream, agent: Agent, shared: &Shared) -> anyhow::Result<()> {
    match shared.connections.to(agent).await {
        Ok(call) => {
            message::send(&mut socket, &Reply::Ready).await?;
            Ok(call.serve(socket).await?)
        }
        Err(error) => {
            let refused = Reply::Refused(format!("{error:#}"));
            Ok(message::send(&mut socket, &refused).await?)
        }
    }
}
