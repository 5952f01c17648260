//! An agent for strange bytes, and a client without a runtime that says them.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;
use vsock_agent_protocol::envelope::{Envelope, EnvelopeKind};

use crate::TestAgent;

/// Time for an answer that must come, on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for an answer that need not come.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// Most reads of an answer that need not end.
const MAX_READS: usize = 64;

/// Whether a task of any agent in this process has panicked. The runtime catches that, so a client
/// does not see it.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Sees whether a task of any runtime in this process panics.
#[derive(Debug)]
pub(super) struct Panics(());

impl Panics {
    pub(super) fn watch() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                let thread = thread::current();
                if thread.name().is_some_and(|name| name.starts_with("tokio-")) {
                    PANICKED.store(true, Ordering::Relaxed);
                }
                before(info);
            }));
        });
        Self(())
    }

    /// None has so far.
    pub(super) fn check(&self) {
        assert!(!PANICKED.load(Ordering::Relaxed), "a task has panicked");
    }
}

/// The agent of one target.
#[derive(Debug)]
pub(super) struct FuzzedAgent(TestAgent, Panics);

/// An answer that came whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Envelope<Value>,
}

impl FuzzedAgent {
    pub(super) fn start() -> Self {
        Self(TestAgent::start(), Panics::watch())
    }

    /// A connection nothing was said on.
    pub(super) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.0.socket()).unwrap();
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        stream
    }

    /// One request, whose answer must come, in an envelope that fits its status.
    pub(super) fn request(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let (status, body) = split(&reply).expect("an answer");
        Answer {
            status,
            body: check_envelope(status, body.expect("a body")),
        }
    }

    /// The agent still answers, and no task of it has panicked.
    pub(super) fn check(&self) {
        assert_eq!(self.request("GET", "/1.0", b"").status, 200);
        self.1.check();
    }
}

/// Says everything, and gives what is answered until the end, or until nothing comes any more.
pub(super) fn exchange(stream: &mut UnixStream, data: &[u8]) -> Vec<u8> {
    exchange_within(stream, data, PATIENCE)
}

/// As [`exchange`], with `patience` for what need not come.
pub(super) fn exchange_within(stream: &mut UnixStream, data: &[u8], patience: Duration) -> Vec<u8> {
    // Both fail when the agent has had enough before it got everything.
    let _ = stream.write_all(data);
    let _ = stream.shutdown(Shutdown::Write);
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 16 * 1024];
    for _ in 0..MAX_READS {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    answer
}

/// The status of an answer, and its body if it has one and all of it came. `None` if there is none.
pub(super) fn split(answer: &[u8]) -> Option<(u16, Option<&[u8]>)> {
    if answer.is_empty() {
        return None;
    }
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no HTTP: {}", answer.escape_ascii()));
    let head = std::str::from_utf8(&answer[..end]).unwrap();
    let (version, rest) = head.split_once(' ').unwrap();
    assert!(matches!(version, "HTTP/1.0" | "HTTP/1.1"), "{head}");
    let status = rest.get(..3).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().unwrap())
    });
    let body = length.and_then(|length| answer[end + 4..].get(..length));
    Some((status, body))
}

/// Reads a body that must be an envelope and must say the same as the status.
pub(super) fn check_envelope(status: u16, body: &[u8]) -> Envelope<Value> {
    let text = body.escape_ascii();
    let envelope: Envelope<Value> =
        serde_json::from_slice(body).unwrap_or_else(|error| panic!("{status} {text}: {error}"));
    let kind = match status {
        200 => EnvelopeKind::Sync,
        202 => EnvelopeKind::Async,
        400..=499 | 501 | 503 => EnvelopeKind::Error,
        _ => panic!("status {status}: {text}"),
    };
    assert_eq!(envelope.kind, kind, "{status} {text}");
    if kind == EnvelopeKind::Error {
        assert_eq!(envelope.error_code, status, "{text}");
        assert!(!envelope.error.is_empty(), "{text}");
    }
    envelope
}
