//! Configuration of the instance data: their source, and how the guest gets them.

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

/// The source of the instance data, and how the guest gets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// The host's address; overrides the one that the host announces. Data are fetched from the start.
    pub host: Option<ListenAddress>,
    /// An address that is tried once at the start, if the host has announced none by then. If a host
    /// answers there, it is used like [`host`](Self::host).
    pub usual_host: Option<ListenAddress>,
    /// The Unix sockets of the guest API.
    pub sockets: Vec<PathBuf>,
    /// How cloud-init gets them.
    pub cloud_init: CloudInit,
    /// Whether the machine reboots once for data that came too late for cloud-init.
    pub cloud_init_reboot: bool,
    /// How long the agent waits for the data before it reports that it is ready. `None` is 10 s if it
    /// knows or finds a host at the start, and 0 otherwise.
    pub ready_timeout: Option<Duration>,
    /// Metadata services of other clouds.
    pub presets: PresetConfig,
}

/// How cloud-init gets the instance data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloudInit {
    /// By the socket (datasource LXD).
    #[default]
    Lxd,
    /// By files (datasource `NoCloud`).
    NoCloud,
    /// Not through the agent.
    Off,
}

/// Text that is not a value of the option `cloud-init`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a way to give cloud-init its data: lxd, nocloud or off")]
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

/// The value of the option for the host's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// The address that the host announces.
    Off,
    /// This address.
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
    /// Whether the data are used.
    pub(crate) fn wants_data(&self) -> bool {
        !self.sockets.is_empty()
            || !self.presets.presets.is_empty()
            || self.cloud_init != CloudInit::Off
    }
}

/// The sockets that were named, or the default ones of the host's flavour.
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
    fn each_family_has_its_socket() {
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
    fn there_are_three_ways_for_cloud_init() {
        assert_eq!("nocloud".parse(), Ok(CloudInit::NoCloud));
        "NoCloud".parse::<CloudInit>().unwrap_err();
    }
}
