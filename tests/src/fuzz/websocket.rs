//! Frames of a websocket, right after the handshake.

use std::{io::Write, os::unix::net::UnixStream};

use serde_json::json;
use vsock_agent_protocol::path;

use super::{
    Target,
    agent::{FuzzedAgent, exchange},
};
use crate::upgrade;

/// Said on an events socket: whatever the agent says is frames, and it goes on answering others.
#[derive(Debug)]
pub struct WebsocketFrames(FuzzedAgent);

impl Target for WebsocketFrames {
    const NAME: &'static str = "websocket_frames";
    const RUNS: u32 = 500;

    fn start() -> Self {
        Self(FuzzedAgent::start())
    }

    fn run(&self, data: &[u8]) {
        check_frames(&exchange(&mut join(&self.0, path::EVENTS), data));
        self.0.check();
    }
}

/// The same, said on the control socket and the terminal of a command. A target of its own because
/// it is slow: the agent takes its time to be sure that nothing of a command is left.
#[derive(Debug)]
pub struct ExecFrames(FuzzedAgent);

impl Target for ExecFrames {
    const NAME: &'static str = "exec_frames";
    const RUNS: u32 = 40;

    fn start() -> Self {
        Self(FuzzedAgent::start())
    }

    fn run(&self, data: &[u8]) {
        let request = json!({
            "command": ["cat"], "wait-for-websocket": true, "interactive": true,
        });
        let body = request.to_string();
        let answer = self.0.request("POST", path::EXEC, body.as_bytes());
        assert_eq!(answer.status, 202);
        let operation = answer.body.operation;
        let fds = &answer.body.metadata["metadata"]["fds"];
        let [mut terminal, mut control] = ["0", "control"].map(|name| {
            let secret = fds[name].as_str().unwrap();
            join(&self.0, &format!("{operation}/websocket?secret={secret}"))
        });
        // Said only: the terminal goes on as long as the command, which the control socket ends.
        let _ = terminal.write_all(data);
        check_frames(&exchange(&mut control, data));
        check_frames(&exchange(&mut terminal, b""));
        self.0.check();
    }
}

/// A websocket that is open.
fn join(agent: &FuzzedAgent, path: &str) -> UnixStream {
    let mut stream = agent.connect();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    upgrade::ask(&mut stream, &head);
    stream
}

/// Checks that these are frames of a server (RFC 6455, section 5.2), the last of them perhaps cut.
fn check_frames(mut rest: &[u8]) {
    while let [first, second, after @ ..] = rest {
        let frame = rest.escape_ascii();
        assert!(matches!(first & 0x0f, 0..=2 | 8..=10), "opcode: {frame}");
        assert_eq!(first & 0x70, 0, "reserved bits: {frame}");
        assert_eq!(second & 0x80, 0, "a server does not mask: {frame}");
        let word = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((word_bytes, after)) = after.split_at_checked(word) else {
            return;
        };
        let length = match word_bytes {
            [] => usize::from(*second),
            word => word
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        rest = after.get(length..).unwrap_or_default();
    }
}
