//! Versions and the names of abilities.

/// Version of the HTTP API, the first component of every path.
pub const API_VERSION: &str = "1.0";

/// Value of `environment.server` by which LXD's client library recognises an agent.
pub const LXD_SERVER_NAME: &str = "lxd-agent";

/// Extension: `user` and `group` in an exec request may be names (`user_name`, `group_name`).
pub const EXEC_USER_NAME: &str = "vsock_agent_exec_user_name";

/// Extension: the final metadata of an exec has `bytes`, `output_complete` and `signal`.
pub const EXEC_RESULT: &str = "vsock_agent_exec_result";

/// Extension: an exec request may have a `timeout` and `wait_for_eof`.
pub const EXEC_OPTIONS: &str = "vsock_agent_exec_options";

/// Abilities an agent of this version announces in `GET /1.0`, LXD's names first.
///
/// LXD 5.0.2 hosts refuse to run a command unless `container_exec_user_group_cwd` and
/// `container_exec_recording` are among them.
pub const API_EXTENSIONS: &[&str] = &[
    "container_exec_recording",
    "container_exec_user_group_cwd",
    "operation_description",
    "operation_wait",
    EXEC_USER_NAME,
    EXEC_RESULT,
    EXEC_OPTIONS,
];
