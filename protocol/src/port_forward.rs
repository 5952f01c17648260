//! The request `POST /1.0/port-forward`: a connection to a TCP port of the guest.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The protocol's name in `Upgrade`.
pub const PROTOCOL: &str = "tcp";

/// The address to connect to from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PortForward {
    /// An address, or a name in the guest's `/etc/hosts`. Empty is the loopback address.
    #[serde(default = "loopback")]
    pub address: String,
    /// TCP port, not 0.
    pub port: u16,
}

impl PortForward {
    /// A port of the guest's loopback address.
    #[must_use]
    pub fn new(port: u16) -> Self {
        Self {
            address: loopback(),
            port,
        }
    }
}

fn loopback() -> String {
    Ipv4Addr::LOCALHOST.to_string()
}
