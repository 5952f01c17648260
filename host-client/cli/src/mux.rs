//! `mux`: a process of the user in the background that keeps connections to agents, so that `agent-cli`
//! need not connect for each call.
//!
//! A call asks it on a Unix socket ([`place`]) with one message ([`message`]) that names the agent. The
//! process replies when it has a connection on which that agent answers, or that it has none. With one, the
//! socket is an HTTP/2 connection from then on, whose streams the process passes on
//! ([`Client::relay`](vsock_agent_client::Client::relay)). Else the call connects itself, so that its errors
//! are those without the process.
//!
//! | module | content |
//! | --- | --- |
//! | [`caller`] | what a call does: it asks, and takes the socket over |
//! | [`start`] | starts the process |
//! | [`process`] | its sockets: who may call, how many, when it ends |
//! | [`connections`] | its connections to agents |

mod caller;
mod connections;
mod message;
mod persist;
mod place;
mod process;
mod start;

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

pub(crate) use self::{caller::client, persist::Persist};
use self::{
    message::{Reply, Request, Status},
    place::Place,
};
use crate::{args::MuxCommand, config::Settings, output};

/// Time for the process to reply to what needs no agent.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// `agent-cli mux`.
pub(crate) async fn run(settings: &Settings, command: MuxCommand) -> anyhow::Result<u8> {
    match command {
        MuxCommand::Start { persist } => {
            let persist = persist.or(settings.config.persist).unwrap_or_default();
            start::wait(&Place::new()?, persist)
        }
        MuxCommand::Stop => stop(),
        MuxCommand::Status { format } => status(format.is_json()),
        MuxCommand::Run { persist } => process::run(persist).await,
    }
}

fn stop() -> anyhow::Result<u8> {
    match ask(&Request::Stop)? {
        Some(Reply::Stopped) => {}
        Some(other) => return Err(other.unexpected()),
        None => output::line("not running")?,
    }
    Ok(0)
}

fn status(is_json: bool) -> anyhow::Result<u8> {
    let status = match ask(&Request::Status)? {
        Some(Reply::Status(status)) => Some(status),
        Some(other) => return Err(other.unexpected()),
        None => None,
    };
    if is_json {
        let is_running = status.is_some();
        let Status { pid, connections } = status.unwrap_or_default();
        let pid = is_running.then_some(pid);
        output::json(&json!({ "running": is_running, "pid": pid, "connections": connections }))?;
        return Ok(0);
    }
    let Some(status) = status else {
        output::line("not running")?;
        return Ok(0);
    };
    output::line(&format!("running, process {}", status.pid))?;
    let rows = status.connections.iter().map(message::Listed::row);
    output::lines(output::table(&Vec::from_iter(rows)))?;
    Ok(0)
}

/// Asks the process something. `None` if there is none.
fn ask(request: &Request) -> anyhow::Result<Option<Reply>> {
    let place = Place::new()?;
    let Some(mut socket) = place.connect().with_context(|| place.unusable())? else {
        return Ok(None);
    };
    let reply = message::ask(&mut socket, request, REPLY_TIMEOUT);
    reply.map(Some).with_context(|| place.unusable())
}
