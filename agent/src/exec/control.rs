//! Control messages: window sizes and signals.

use std::{io, sync::Arc};

use futures_util::{Stream, StreamExt};
use nix::unistd::Pid;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use vsock_agent_protocol::exec::ControlMessage;

use super::{
    child::signal_group,
    pty::{Pty, TermSize},
    stream::ControlFrames,
};

/// Applies control messages until the socket closes. Invalid messages are ignored, as in LXD's agent.
pub(super) async fn run<R>(socket: &mut R, pid: Pid, pty: Option<&Arc<Pty>>)
where
    R: Stream<Item = Result<Message, WsError>> + Unpin + Send,
{
    while let Some(Ok(message)) = socket.next().await {
        let text = match &message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(data) => data,
            Message::Close(_) => return,
            _ => continue,
        };
        match serde_json::from_slice(text) {
            Ok(message) => apply(message, pid, pty),
            Err(error) => tracing::debug!(%error, "ignored a control message"),
        }
    }
}

/// Applies the control messages of a stream until its client is lost.
pub(super) async fn run_stream(frames: &mut ControlFrames, pid: Pid, pty: Option<&Arc<Pty>>) {
    while let Some(message) = frames.next().await {
        apply(message, pid, pty);
    }
}

fn apply(message: ControlMessage, pid: Pid, pty: Option<&Arc<Pty>>) {
    let done = try_apply(message, pid, pty);
    tracing::debug!(?message, ?done, "control message");
}

fn try_apply(message: ControlMessage, pid: Pid, pty: Option<&Arc<Pty>>) -> io::Result<()> {
    match message {
        // Clients whose terminal has no size yet send zeros.
        ControlMessage::WindowResize { width: 0, .. }
        | ControlMessage::WindowResize { height: 0, .. } => Ok(()),
        ControlMessage::WindowResize { width, height } => pty.map_or(Ok(()), |pty| {
            pty.resize(TermSize {
                rows: height,
                cols: width,
            })
        }),
        ControlMessage::Signal(number) => signal_group(pid, number),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
