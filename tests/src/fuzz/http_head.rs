//! Everything a client may say instead of HTTP.

use vsock_agent_protocol::path;
use vsock_agent_transport::http::PREFACE;

use super::{
    Target,
    agent::{FuzzedAgent, check_envelope, exchange, split},
};

/// If there is an answer it is HTTP, says that it was the client's fault or nobody's, or that there
/// is no such thing here (501, `PUT /1.0/state`), and has an envelope if it has a body.
#[derive(Debug)]
pub struct HttpHead(FuzzedAgent);

impl Target for HttpHead {
    const NAME: &'static str = "http_head";
    const RUNS: u32 = 500;

    fn start() -> Self {
        Self(FuzzedAgent::start())
    }

    fn run(&self, data: &[u8]) {
        // HTTP/2 is another protocol.
        if data.starts_with(PREFACE) || reaches_the_machine(data) {
            return;
        }
        let answer = exchange(&mut self.0.connect(), data);
        if let Some((status, body)) = split(&answer) {
            assert!(matches!(status, 100..=499 | 501 | 503), "status {status}");
            // Hyper itself refuses a bad head without a body; `/metrics` has no envelope.
            let body = body.filter(|body| body.first() == Some(&b'{'));
            if let Some(body) = body {
                check_envelope(status, body);
            }
        }
        self.0.check();
    }
}

/// Whether the agent could be made to change files, or to connect to others: it is a real one, and
/// a fuzzer learns to speak SFTP. Routes are compared byte for byte, so this misses nothing.
fn reaches_the_machine(data: &[u8]) -> bool {
    [path::SFTP, path::PORT_FORWARD].iter().any(|path| {
        data.windows(path.len())
            .any(|window| window == path.as_bytes())
    })
}
