//! Everything a program in the guest may say on its socket.

use std::{os::unix::net::UnixStream, time::Duration};

use vsock_agent_protocol::guest_api::EVENTS;

use super::{
    Target,
    agent::{PATIENCE, Panics, exchange_within, split},
};
use crate::{HostData, MockHost, TestAgent};

/// What no guest may read.
const SECRET: &str = "6ef0fbd2";

/// Time for the first events of a stream without an end: there are none.
const STREAM_PATIENCE: Duration = Duration::from_millis(2);

/// If there is an answer it is HTTP, it is not our fault, and it has nothing that the host hides.
#[derive(Debug)]
pub struct GuestApi {
    agent: TestAgent,
    _host: MockHost,
    panics: Panics,
}

impl Target for GuestApi {
    const NAME: &'static str = "guest_api";
    const RUNS: u32 = 10_000;

    fn start() -> Self {
        let mut agent = TestAgent::configured(|config| {
            let socket = config.guest.sockets[0].with_file_name("host.sock");
            config.guest.host = Some(format!("unix:{}", socket.display()).parse().unwrap());
            config.guest.ready_timeout = Some(Duration::from_secs(60));
        });
        let data = HostData::with(&[
            ("user.a", "1"),
            ("cloud-init.ssh-keys.ann", SECRET),
            ("volatile.uuid", SECRET),
        ]);
        let host = MockHost::start(&agent.folder().join("host.sock"), data);
        agent.wait_until_ready();
        Self {
            agent,
            _host: host,
            panics: Panics::watch(),
        }
    }

    fn run(&self, data: &[u8]) {
        let streams = data
            .windows(EVENTS.len())
            .any(|part| part == EVENTS.as_bytes());
        let patience = if streams { STREAM_PATIENCE } else { PATIENCE };
        let answer = exchange_within(&mut self.connect(), data, patience);
        if let Some((status, _)) = split(&answer) {
            assert!(matches!(status, 100..=499 | 503), "status {status}");
        }
        let secret = SECRET.as_bytes();
        assert!(!answer.windows(secret.len()).any(|part| part == secret));
        self.check();
    }
}

impl GuestApi {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.agent.guest_socket()).unwrap()
    }

    /// It still answers, and no task of it has panicked.
    fn check(&self) {
        let request = b"GET /1.0/config/user.a HTTP/1.1\r\nHost: x\r\n\r\n";
        let answer = exchange_within(&mut self.connect(), request, Duration::from_secs(20));
        assert_eq!(split(&answer), Some((200, Some(&b"1"[..]))));
        self.panics.check();
    }
}
