//! What a call does.

use std::{io, os::unix::net::UnixStream, time::Duration};

use tracing::debug;
use vsock_agent_client::{Client, Endpoint, Security, Timeouts};

use super::{
    message::{self, Agent, Files, Reply, Request},
    place::Place,
    start,
};
use crate::config::{Settings, Target};

/// Longest wait for the process to have a connection. It tries once, which the library limits to 10 s.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// A client by the process in the background; `None` if none runs or it has no connection to the agent. Then
/// the call connects itself, and finds out why.
pub(crate) async fn client(
    settings: &Settings,
    target: &Target,
    security: &Security,
    timeouts: Timeouts,
) -> Option<Client> {
    let place = Place::find()?;
    let socket = match place.connect() {
        Ok(Some(socket)) => socket,
        Ok(None) => {
            if let Some(persist) = settings.config.persist {
                // For the next call.
                start::start(&place, persist);
            }
            return None;
        }
        Err(error) => {
            debug!(%error, "the process in the background cannot be used");
            return None;
        }
    };
    let taken = hand_over(socket, target, timeouts);
    let socket = taken
        .inspect_err(|error| debug!(%error, "no connection of the process in the background"))
        .ok()?;
    let (endpoint, security) = (target.endpoint.clone(), security.clone());
    Client::over_relay(socket, endpoint, security, timeouts)
        .await
        .ok()
}

/// Asks for a connection. Blocks: the call has nothing else to do.
fn hand_over(
    mut socket: UnixStream,
    target: &Target,
    timeouts: Timeouts,
) -> io::Result<UnixStream> {
    let files = || Files::of(&target.identity_files().map_err(io::Error::other)?);
    let agent = Agent {
        endpoint: absolute(&target.endpoint)?.to_string(),
        identity: (!target.plain).then(files).transpose()?,
        silence: timeouts.silence.map(|silence| silence.as_secs()),
    };
    let limit = READY_TIMEOUT.min(timeouts.connect);
    match message::ask(&mut socket, &Request::Call(agent), limit)? {
        Reply::Ready => Ok(socket),
        Reply::Refused(reason) => Err(io::Error::other(reason)),
        other => Err(io::Error::other(other.unexpected())),
    }
}

/// The same endpoint for a process in another directory.
fn absolute(endpoint: &Endpoint) -> io::Result<Endpoint> {
    let mut endpoint = endpoint.clone();
    match &mut endpoint {
        Endpoint::Unix(path) | Endpoint::Hybrid { path, .. } => {
            *path = std::path::absolute(&path)?;
        }
        _ => {}
    }
    Ok(endpoint)
}
