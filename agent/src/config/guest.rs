//! Configuration of the instance data.

use std::{path::PathBuf, str::FromStr, time::Duration};

use vsock_agent_metadata::PresetConfig;
use vsock_agent_protocol::{
    address::{Cid, DEFAULT_HOST_PORT, VsockAddress},
    version::Family,
};

use crate::http::listen::{ListenAddress, ParseListenError};

/// The value that disables an option.
const OFF: &str = "off";

/// The default address of `agent-cli serve`.
pub(super) const DEFAULT_HOST: ListenAddress = ListenAddress::Vsock(VsockAddress {
    cid: Cid::HOST,
    port: DEFAULT_HOST_PORT,
});

/// The source of the instance data, and the services that provide them in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// The host's address. Overrides the announced one.
    pub host: Option<ListenAddress>,
    /// An address to try once at the start if the host has not announced one. If a host replies, the address
    /// is used as [`host`](Self::host).
    pub default_host: Option<ListenAddress>,
    /// The Unix sockets of the guest API.
    pub sockets: Vec<PathBuf>,
    /// How cloud-init gets the data.
    pub cloud_init: CloudInit,
    /// Whether the machine reboots once for data that come too late for cloud-init.
    pub cloud_init_reboot: bool,
    /// Time to wait for the data before the agent reports that it is ready. `None` is 10 s if the host's
    /// address is known or found at the start, otherwise 0.
    pub ready_timeout: Option<Duration>,
    /// The metadata services.
    pub presets: PresetConfig,
}

/// How cloud-init gets the instance data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloudInit {
    /// By the guest API (datasource `LXD`).
    #[default]
    Lxd,
    /// By a seed (datasource `NoCloud`).
    NoCloud,
    /// Not from the agent.
    Off,
}

/// The text is not a value of the option `cloud-init`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither lxd, nocloud nor off")]
pub struct ParseCloudInitError(String);

impl FromStr for CloudInit {
    type Err = ParseCloudInitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "lxd" => Ok(Self::Lxd),
            "nocloud" => Ok(Self::NoCloud),
            OFF => Ok(Self::Off),
            _ => Err(ParseCloudInitError(text.to_owned())),
        }
    }
}

/// The value of the option `host`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// `off`: the announced address.
    Off,
    /// An address.
    At(ListenAddress),
}

impl FromStr for Host {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            OFF => Ok(Self::Off),
            _ => text.parse().map(Self::At),
        }
    }
}

impl GuestConfig {
    /// Whether any service uses the data.
    pub(crate) fn wants_data(&self) -> bool {
        !self.sockets.is_empty()
            || !self.presets.presets.is_empty()
            || self.cloud_init != CloudInit::Off
    }
}

/// The configured sockets of the guest API, or the default one of the host's flavour.
pub(super) fn sockets(mut named: Vec<PathBuf>, family: Family) -> Vec<PathBuf> {
    if named.is_empty() {
        named.push(match family {
            Family::Lxd => "/dev/lxd/sock".into(),
            Family::Incus => "/dev/incus/sock".into(),
        });
    }
    named.retain(|path| path.as_os_str() != OFF);
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_socket_of_the_guest_api_depends_on_the_family() {
        assert_eq!(
            sockets(Vec::new(), Family::Lxd),
            ["/dev/lxd/sock"].map(PathBuf::from)
        );
        assert_eq!(
            sockets(Vec::new(), Family::Incus),
            ["/dev/incus/sock"].map(PathBuf::from)
        );
        assert_eq!(
            sockets(vec!["/x".into()], Family::Lxd),
            ["/x"].map(PathBuf::from)
        );
        assert!(sockets(vec![OFF.into()], Family::Lxd).is_empty());
    }

    #[test]
    fn the_values_of_the_option_cloud_init_are_lower_case() {
        assert_eq!("nocloud".parse(), Ok(CloudInit::NoCloud));
        "NoCloud".parse::<CloudInit>().unwrap_err();
    }
}
