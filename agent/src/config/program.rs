//! The program name, and the defaults that depend on it.

use std::{ffi::OsStr, path::Path};

use vsock_agent_protocol::version::{Family, INCUS_SERVER_NAME, LXD_SERVER_NAME};

/// The program by whose name the agent is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// `vsock-agent`.
    Own,
    /// `lxd-agent` or `incus-agent`. Their units start it in a copy of the config share.
    ReplacesAgentOf(Family),
}

impl Program {
    /// The program of `argv[0]`.
    pub(super) fn named(argument: Option<&OsStr>) -> Self {
        let name = argument.and_then(|path| Path::new(path).file_name()?.to_str());
        match name {
            Some(LXD_SERVER_NAME) => Self::ReplacesAgentOf(Family::Lxd),
            Some(INCUS_SERVER_NAME) => Self::ReplacesAgentOf(Family::Incus),
            _ => Self::Own,
        }
    }

    /// The default flavour of the host.
    pub(super) fn family(self) -> Family {
        match self {
            Self::Own => Family::default(),
            Self::ReplacesAgentOf(family) => family,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_determined_by_the_file_name() {
        let named = |name: &str| Program::named(Some(OsStr::new(name)));
        assert_eq!(
            named("/usr/bin/lxd-agent"),
            Program::ReplacesAgentOf(Family::Lxd)
        );
        assert_eq!(
            named("incus-agent"),
            Program::ReplacesAgentOf(Family::Incus)
        );
        assert_eq!(named("/run/lxd_agent/vsock-agent"), Program::Own);
        assert_eq!(named("/lxd-agent/"), Program::ReplacesAgentOf(Family::Lxd));
        assert_eq!(Program::named(None), Program::Own);
    }
}
