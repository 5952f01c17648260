//! What the agent is told of instance data: where they come from, and who gets them.

use std::{path::PathBuf, str::FromStr, time::Duration};

use vsock_agent_protocol::{
    address::{Cid, DEFAULT_HOST_PORT, VsockAddress},
    version::Family,
};

use crate::{
    guest::presets::PresetConfig,
    http::listen::{ListenAddress, ParseListenError},
};

/// The word for none at all.
const OFF: &str = "off";

/// Where our own host answers.
pub(super) const USUAL_HOST: ListenAddress = ListenAddress::Vsock(VsockAddress {
    cid: Cid::HOST,
    port: DEFAULT_HOST_PORT,
});

/// Where instance data come from, and who in the guest gets them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// Where the host answers, whatever it says of that itself. It is asked from the start then.
    pub host: Option<ListenAddress>,
    /// Where it is looked for once at the start, if it is not known by then where it answers. One
    /// that answers there is as good as [`host`](Self::host).
    pub usual_host: Option<ListenAddress>,
    /// The Unix sockets that programs in the guest ask.
    pub sockets: Vec<PathBuf>,
    /// How cloud-init gets them.
    pub cloud_init: CloudInit,
    /// Whether the machine reboots once for data that came too late for cloud-init.
    pub cloud_init_reboot: bool,
    /// How long the agent waits for them before it says that it is ready; `None` is 10 s if it
    /// knows or finds a host at its start, and not at all otherwise.
    pub ready_timeout: Option<Duration>,
    /// Metadata services of other clouds.
    pub presets: PresetConfig,
}

/// How cloud-init gets the instance data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloudInit {
    /// It asks the socket (datasource LXD).
    #[default]
    Lxd,
    /// It finds files (datasource `NoCloud`).
    NoCloud,
    /// Not through the agent.
    Off,
}

/// Text that is not one of the ways.
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

/// What is said of where the host answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// Where it says itself.
    Off,
    /// There.
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
    /// Whether anybody wants the data.
    pub(crate) fn wants_data(&self) -> bool {
        !self.sockets.is_empty()
            || !self.presets.presets.is_empty()
            || self.cloud_init != CloudInit::Off
    }
}

/// The sockets that were named, or the family's own if none was.
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
