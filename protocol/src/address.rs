//! Addresses on AF_VSOCK.

use std::{fmt, num::ParseIntError, str::FromStr};

/// Port LXD and Incus use for their agents, and the default here.
pub const DEFAULT_PORT: u32 = 8443;

/// Default port on which `agent-cli serve` answers its guests.
pub const DEFAULT_HOST_PORT: u32 = 8444;

/// Context id of a machine on AF_VSOCK (`include/uapi/linux/vm_sockets.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(pub u32);

impl Cid {
    /// `VMADDR_CID_LOCAL`: this machine, by the loopback transport.
    pub const LOCAL: Self = Self(1);
    /// `VMADDR_CID_HOST`: the host of this guest.
    pub const HOST: Self = Self(2);
    /// `VMADDR_CID_ANY`: any context id of this machine.
    pub const ANY: Self = Self(u32::MAX);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("any"),
            Self(number) => number.fmt(f),
        }
    }
}

impl FromStr for Cid {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "any" => Ok(Self::ANY),
            "host" => Ok(Self::HOST),
            "local" => Ok(Self::LOCAL),
            number => number
                .parse()
                .map(Self)
                .map_err(|source| ParseAddressError {
                    what: "context id",
                    text: text.to_owned(),
                    source,
                }),
        }
    }
}

/// One end of an AF_VSOCK connection, written `CID:PORT`, such as `any:8443` or `3:8443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VsockAddress {
    /// The machine.
    pub cid: Cid,
    /// The port on it. Those below 1024 need `CAP_NET_BIND_SERVICE` to listen on.
    pub port: u32,
}

impl fmt::Display for VsockAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.port)
    }
}

impl FromStr for VsockAddress {
    type Err = ParseAddressError;

    /// Reads `CID` or `CID:PORT`; without a port it is [`DEFAULT_PORT`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (cid, port) = match text.split_once(':') {
            None => (text, DEFAULT_PORT),
            Some((cid, port)) => (cid, parse_port(port)?),
        };
        Ok(Self {
            cid: cid.parse()?,
            port,
        })
    }
}

/// Reads a vsock port: 0 to 4294967294.
///
/// # Errors
///
/// [`ParseAddressError`] when `text` is not such a number.
pub fn parse_port(text: &str) -> Result<u32, ParseAddressError> {
    text.parse().map_err(|source| ParseAddressError {
        what: "port",
        text: text.to_owned(),
        source,
    })
}

/// Text that is not a vsock address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a vsock {what}")]
pub struct ParseAddressError {
    what: &'static str,
    text: String,
    source: ParseIntError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_the_default() {
        let address: VsockAddress = "3".parse().unwrap();
        assert_eq!(
            address,
            VsockAddress {
                cid: Cid(3),
                port: DEFAULT_PORT
            }
        );
    }

    #[test]
    fn any_is_read_and_written_by_name() {
        let address: VsockAddress = "any:1024".parse().unwrap();
        assert_eq!(address.cid, Cid::ANY);
        assert_eq!(address.to_string(), "any:1024");
    }

    #[test]
    fn an_address_that_is_no_number_says_which_part() {
        let error = "3:ssh".parse::<VsockAddress>().unwrap_err();
        assert_eq!(error.to_string(), "\"ssh\" is not a vsock port");
    }
}
