//! What `POST /1.0/port-forward` is asked for: a connection to a port in the guest.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The protocol's name in `Upgrade`.
pub const PROTOCOL: &str = "tcp";

/// Where to connect to, seen from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// Address, or a name the guest knows by itself. Empty is the loopback too.
    #[serde(default = "loopback")]
    pub address: String,
    /// TCP port; 0 is refused.
    pub port: u16,
}

fn loopback() -> String {
    Ipv4Addr::LOCALHOST.to_string()
}
