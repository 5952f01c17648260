//! The host's announcement, `PUT /1.0`.

use serde::{Deserialize, Serialize};

use crate::{address::VsockAddress, version::Family};

/// The host's address and certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HostConnection {
    /// Context id of the host. Not validated: some hosts do not know their own.
    #[serde(default)]
    pub cid: u32,
    /// Port it listens on.
    #[serde(default)]
    pub port: u32,
    /// Its certificate, in PEM, or empty.
    #[serde(default)]
    pub certificate: String,
    /// Whether the guest API is enabled. Incus calls it `dev_incus`; both are read.
    #[serde(default, alias = "dev_incus")]
    pub devlxd: bool,
}

impl HostConnection {
    /// A host at this address, with the guest API, and without a certificate.
    #[must_use]
    pub const fn new(address: VsockAddress) -> Self {
        Self {
            cid: address.cid.0,
            port: address.port,
            certificate: String::new(),
            devlxd: true,
        }
    }

    /// The JSON for an agent of this flavour.
    #[must_use]
    pub fn to_json(&self, family: Family) -> serde_json::Value {
        let devlxd = match family {
            Family::Lxd => "devlxd",
            Family::Incus => "dev_incus",
        };
        serde_json::json!({
            "cid": self.cid,
            "port": self.port,
            "certificate": self.certificate,
            devlxd: self.devlxd,
        })
    }
}
