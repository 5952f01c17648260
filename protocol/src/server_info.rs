//! Information about an agent, `GET /1.0`.

use serde::{Deserialize, Serialize};

use crate::null::null_as_default;

/// The agent and its API extensions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerInfo {
    /// Names of extensions; see [`crate::version`].
    #[serde(default, deserialize_with = "null_as_default")]
    pub api_extensions: Vec<String>,
    /// `stable`.
    #[serde(default)]
    pub api_status: String,
    /// `1.0`.
    #[serde(default)]
    pub api_version: String,
    /// Always `trusted`: other clients are refused in the handshake.
    #[serde(default)]
    pub auth: String,
    /// Always false.
    #[serde(default)]
    pub public: bool,
    /// `["tls"]`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub auth_methods: Vec<String>,
    /// Always null.
    #[serde(default)]
    pub config: serde_json::Value,
    /// The system it runs on.
    #[serde(default)]
    pub environment: Environment,
    /// Id of this boot (`/proc/sys/kernel/random/boot_id`, `random(4)`). Absent from other agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

impl ServerInfo {
    /// Whether the agent has the extension `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.api_extensions
            .iter()
            .any(|extension| extension == name)
    }
}

/// The system an agent runs on. Keys that only LXD's own server fills are always empty here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Environment {
    /// Empty.
    #[serde(deserialize_with = "null_as_default")]
    pub addresses: Vec<String>,
    /// Empty.
    #[serde(deserialize_with = "null_as_default")]
    pub architectures: Vec<String>,
    /// Empty.
    pub certificate: String,
    /// Empty.
    pub certificate_fingerprint: String,
    /// Empty.
    pub driver: String,
    /// Empty.
    pub driver_version: String,
    /// Empty.
    pub firewall: String,
    /// System name: `Linux` (`uname -s`).
    pub kernel: String,
    /// Machine, such as `x86_64` (`uname -m`).
    pub kernel_architecture: String,
    /// Release, such as `6.1.0-37-cloud-amd64` (`uname -r`).
    pub kernel_version: String,
    /// Empty.
    pub os_name: String,
    /// Empty.
    pub os_version: String,
    /// Empty.
    pub project: String,
    /// `lxd-agent` or `incus-agent`. LXD's and Incus's client libraries use an agent's paths only for
    /// exactly their own name.
    pub server: String,
    /// Always false.
    pub server_clustered: bool,
    /// Host name of the guest.
    pub server_name: String,
    /// Process id of the agent in the guest.
    pub server_pid: i64,
    /// Version of the agent.
    pub server_version: String,
    /// Empty.
    pub storage: String,
    /// Empty.
    pub storage_version: String,
}
