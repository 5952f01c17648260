//! Bodies of the requests that have one.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use vsock_agent_protocol::{event::NewEvent, exec::ExecRequest, host::HostConnection, path};

use super::{Target, agent::FuzzedAgent};

/// What is no request is answered with 400 and starts nothing; what is one is read again as it was
/// written.
#[derive(Debug)]
pub struct HttpBody(FuzzedAgent);

impl Target for HttpBody {
    const NAME: &'static str = "http_body";
    const RUNS: u32 = 500;

    fn start() -> Self {
        Self(FuzzedAgent::start())
    }

    fn run(&self, data: &[u8]) {
        self.exec(data);
        self.event(data);
        self.host(data);
        self.0.check();
    }
}

impl HttpBody {
    fn exec(&self, data: &[u8]) {
        let request: Option<ExecRequest> = read_twice(data);
        let answer = self.0.request("POST", path::EXEC, data);
        match answer.status {
            202 => {
                assert!(request.is_some_and(|request| !request.command.is_empty()));
                self.cancel(&answer.body.operation);
            }
            400 | 413 => {}
            other => panic!("status {other}"),
        }
        // Nothing else makes operations here, and the one above has ended.
        let operations = self.0.request("GET", path::OPERATIONS, b"").body.metadata;
        assert_eq!(operations.get("running"), None);
    }

    /// Ends a command that nobody has joined, so that it has not started.
    fn cancel(&self, operation: &str) {
        assert_eq!(self.0.request("DELETE", operation, b"").status, 200);
        let ended = self
            .0
            .request("GET", &format!("{operation}/wait"), b"")
            .body
            .metadata;
        assert_eq!(ended["err"], json!("cancelled before it started"));
        assert_eq!(ended["metadata"].get("return"), None);
    }

    fn event(&self, data: &[u8]) {
        // Not compared: serde_json reads a float only nearly as it was written.
        let event: Option<NewEvent> = read(data);
        if let Some(event) = &event {
            let text = serde_json::to_vec(event).unwrap();
            serde_json::from_slice::<NewEvent>(&text).unwrap();
        }
        let makes_sense = event.is_some_and(|event| !event.kind.is_empty());
        let status = self.0.request("POST", path::EVENTS, data).status;
        assert_eq!(status, if makes_sense { 200 } else { 400 });
    }

    fn host(&self, data: &[u8]) {
        let connection: Option<HostConnection> = read_twice(data);
        match self.0.request("PUT", path::SERVER, data).status {
            200 => assert!(connection.is_some_and(|connection| connection.port != 0)),
            400 => {}
            other => panic!("status {other}"),
        }
    }
}

/// Reads a value as Go does: the last of several fields of one name counts, and one that is `null` is not
/// set.
fn read<T: DeserializeOwned>(data: &[u8]) -> Option<T> {
    let mut value: Value = serde_json::from_slice(data).ok()?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(value).ok()
}

/// Reads a value, and once more after writing it.
fn read_twice<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let value = read(data)?;
    let text = serde_json::to_vec(&value).unwrap();
    assert_eq!(serde_json::from_slice::<T>(&text).unwrap(), value);
    Some(value)
}
