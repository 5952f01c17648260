//! Every route, as a constant or a builder, for both ends.

use std::time::Duration;

use crate::{
    exec::{Secret, whole_seconds},
    operation::OperationId,
    port_forward::PortForward,
};

/// The list of API versions. Any method, no certificate checked beyond TLS itself.
pub const ROOT: &str = "/";
/// Information about the agent; `PUT` announces the host's address.
pub const SERVER: &str = "/1.0";
/// `POST` starts a command.
pub const EXEC: &str = "/1.0/exec";
/// `POST` runs a command on one HTTP/2 stream.
pub const EXEC_STREAM: &str = "/1.0/exec-stream";
/// The running operations and those that ended recently.
pub const OPERATIONS: &str = "/1.0/operations";
/// Events as they happen, by websocket or as a stream of JSON lines.
pub const EVENTS: &str = "/1.0/events";
/// Upgrade to SFTP.
pub const SFTP: &str = "/1.0/sftp";
/// The guest: its memory, network and processes.
pub const STATE: &str = "/1.0/state";
/// Metrics of the guest, for the host to convert to `OpenMetrics`.
pub const METRICS: &str = "/1.0/metrics";
/// Metrics of the guest and of the agent, in Prometheus's text format.
pub const METRICS_TEXT: &str = "/metrics";
/// Upgrade to a TCP connection in the guest.
pub const PORT_FORWARD: &str = "/1.0/port-forward";

/// One operation.
#[must_use]
pub fn operation(id: OperationId) -> String {
    format!("{OPERATIONS}/{id}")
}

/// A connection to a TCP port of the guest, as a stream of an HTTP/2 connection.
#[must_use]
pub fn port_forward(to: &PortForward) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("address", &to.address);
    query.append_pair("port", &to.port.to_string());
    format!("{PORT_FORWARD}?{}", query.finish())
}

/// Waits for the end of one operation, at most `limit`, which is rounded up to whole seconds; `None` is
/// no limit.
#[must_use]
pub fn operation_wait(id: OperationId, limit: Option<Duration>) -> String {
    match limit.map(whole_seconds) {
        None => format!("{OPERATIONS}/{id}/wait"),
        Some(seconds) => format!("{OPERATIONS}/{id}/wait?timeout={seconds}"),
    }
}

/// One stream of one operation, by its secret in the operation's `fds`.
#[must_use]
pub fn operation_websocket(id: OperationId, secret: &Secret) -> String {
    format!("{OPERATIONS}/{id}/websocket?secret={}", secret.as_str())
}
