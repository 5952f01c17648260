//! The words on the control socket, without the socket.

use vsock_agent_protocol::exec::{ControlMessage, MAX_SIGNAL};

use super::Target;

/// What is read is one of the two messages, and is read again as it was written.
#[derive(Debug)]
pub struct ControlJson;

impl Target for ControlJson {
    const NAME: &'static str = "control_json";
    const RUNS: u32 = 100_000;

    fn start() -> Self {
        Self
    }

    fn run(&self, data: &[u8]) {
        let Ok(message) = serde_json::from_slice::<ControlMessage>(data) else {
            return;
        };
        if let ControlMessage::Signal(signal) = message {
            assert!((1..=MAX_SIGNAL).contains(&signal), "{message:?}");
        }
        let text = serde_json::to_vec(&message).unwrap();
        let again: ControlMessage = serde_json::from_slice(&text).unwrap();
        assert_eq!(again, message);
    }
}
