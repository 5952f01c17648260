//! Versions, host flavours, and names of API extensions.

use std::{fmt, str::FromStr};

/// Version of the HTTP API, the first component of every path.
pub const API_VERSION: &str = "1.0";

/// Value of `environment.server` by which LXD's client library recognises an agent.
pub const LXD_SERVER_NAME: &str = "lxd-agent";

/// Value of `environment.server` by which Incus's client library recognises an agent.
pub const INCUS_SERVER_NAME: &str = "incus-agent";

/// The flavour of the host: LXD and Incus differ in some formats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// LXD.
    #[default]
    Lxd,
    /// Incus.
    Incus,
}

impl Family {
    /// The name by which these hosts recognise an agent.
    #[must_use]
    pub const fn server_name(self) -> &'static str {
        match self {
            Self::Lxd => LXD_SERVER_NAME,
            Self::Incus => INCUS_SERVER_NAME,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lxd => "lxd",
            Self::Incus => "incus",
        })
    }
}

impl FromStr for Family {
    type Err = ParseFamilyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "lxd" => Ok(Self::Lxd),
            "incus" => Ok(Self::Incus),
            _ => Err(ParseFamilyError(text.to_owned())),
        }
    }
}

/// Text that is not a flavour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither lxd nor incus")]
pub struct ParseFamilyError(String);

/// Extension: `user` and `group` in an exec request may be names (`user_name`, `group_name`).
pub const EXEC_USER_NAME: &str = "vsock_agent_exec_user_name";

/// Extension: the final metadata of an exec has `bytes`, `output_complete` and `signal`.
pub const EXEC_RESULT: &str = "vsock_agent_exec_result";

/// Extension: an exec request may have a `timeout` and `wait_for_eof`.
pub const EXEC_OPTIONS: &str = "vsock_agent_exec_options";

/// Extension: an exec request may have a `timeout_ms` and a `kill_pause_ms`.
pub const EXEC_TIMES: &str = "vsock_agent_exec_times";

/// Extension: an exec request may have a `vsock_agent_on_disconnect`.
pub const EXEC_ON_DISCONNECT: &str = "vsock_agent_exec_on_disconnect";

/// Extension: the agent speaks HTTP/2, by ALPN after TLS and by prior knowledge without TLS (RFC 9113, section
/// 3.3).
pub const HTTP2: &str = "vsock_agent_http2";

/// Extension: `POST /1.0/exec-stream` runs a command on one HTTP/2 stream ([`crate::exec::stream`]).
pub const EXEC_STREAM: &str = "vsock_agent_exec_stream";

/// Extension: `GET /metrics` has numbers in Prometheus's text format.
pub const METRICS_TEXT: &str = "vsock_agent_metrics_text";

/// Extension of Incus: `POST /1.0/port-forward` connects to a TCP port of the guest.
pub const PORT_FORWARD: &str = "instance_port_forward";

/// Extension: `GET /1.0/sftp` takes [`crate::sftp::SessionOptions`] as its query.
pub const SFTP_SESSION: &str = "vsock_agent_sftp_session";

/// The extensions that an agent of this version announces in `GET /1.0`, LXD's names first.
///
/// LXD 5.0.2 hosts refuse to run a command unless `container_exec_user_group_cwd` and
/// `container_exec_recording` are among them.
pub const API_EXTENSIONS: &[&str] = &[
    "container_exec_recording",
    "container_exec_user_group_cwd",
    "metrics",
    "operation_description",
    "operation_wait",
    PORT_FORWARD,
    EXEC_USER_NAME,
    EXEC_RESULT,
    EXEC_OPTIONS,
    EXEC_TIMES,
    EXEC_ON_DISCONNECT,
    HTTP2,
    EXEC_STREAM,
    METRICS_TEXT,
    SFTP_SESSION,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_it_is_read() {
        for family in [Family::Lxd, Family::Incus] {
            assert_eq!(family.to_string().parse(), Ok(family));
        }
        "LXD".parse::<Family>().unwrap_err();
    }
}
