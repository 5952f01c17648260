//! The address of an agent, of three kinds.

use std::{fmt, os::unix::ffi::OsStrExt, path::PathBuf, str::FromStr};

use crate::protocol::address::{self, Cid, DEFAULT_PORT, ParseAddressError, VsockAddress};

/// Longest path of a Unix socket, in bytes: `sun_path` less its NUL (`unix(7)`).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The address of an agent.
///
/// | Written | Means |
/// | --- | --- |
/// | `vsock:CID[:PORT]` | the virtual machine with that context id |
/// | `unix:PATH` | a Unix socket the agent itself, or a byte-for-byte proxy, listens on |
/// | `hybrid:PATH[:PORT]` | the Unix socket by which Firecracker, Cloud Hypervisor and vhost-device-vsock reach a guest's ports, with their `CONNECT` handshake |
///
/// The port is 8443 if it is left out. A path is looked up on a thread of its own, and must not contain a
/// symbolic link that another user than root and the caller's can change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// AF_VSOCK.
    Vsock(VsockAddress),
    /// A Unix socket.
    Unix(PathBuf),
    /// The Unix socket of a virtual machine monitor.
    Hybrid {
        /// Its path.
        path: PathBuf,
        /// The port in the guest.
        port: u32,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(address) => write!(f, "vsock:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Hybrid { path, port } => write!(f, "hybrid:{}:{port}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = text
            .split_once(':')
            .ok_or_else(|| EndpointError::Unknown(text.to_owned()))?;
        match kind {
            "vsock" => {
                let address: VsockAddress = rest.parse().map_err(EndpointError::Address)?;
                match address.cid {
                    Cid::ANY => Err(EndpointError::NotOneMachine),
                    _ => Ok(Self::Vsock(address)),
                }
            }
            "unix" => Ok(Self::Unix(socket_path(rest)?)),
            "hybrid" => {
                let (path, port) = split_port(rest)?;
                Ok(Self::Hybrid {
                    path: socket_path(path)?,
                    port,
                })
            }
            _ => Err(EndpointError::Unknown(text.to_owned())),
        }
    }
}

/// Splits `:PORT` off the end. The part after the last colon is a port if it is all digits, else it
/// belongs to the path.
fn split_port(text: &str) -> Result<(&str, u32), EndpointError> {
    match text.rsplit_once(':') {
        Some((path, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => Ok((
            path,
            address::parse_port(port).map_err(EndpointError::Address)?,
        )),
        _ => Ok((text, DEFAULT_PORT)),
    }
}

fn socket_path(text: &str) -> Result<PathBuf, EndpointError> {
    let path = PathBuf::from(text);
    match path.as_os_str().as_bytes().len() {
        0 => Err(EndpointError::EmptyPath),
        1..=MAX_SOCKET_PATH_BYTES => Ok(path),
        bytes => Err(EndpointError::PathTooLong { bytes }),
    }
}

/// Why a text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// It does not begin with a known prefix.
    #[error("{0:?} is not vsock:CID[:PORT], unix:PATH or hybrid:PATH[:PORT]")]
    Unknown(String),
    /// A context id or port is not a number.
    #[error("the address cannot be read")]
    Address(#[source] ParseAddressError),
    /// `any` is only for listening.
    #[error("a connection needs the context id of one machine, not \"any\"")]
    NotOneMachine,
    /// The path is empty.
    #[error("the path of the socket is empty")]
    EmptyPath,
    /// The path is longer than `sun_path`.
    #[error(
        "the path of the socket has {bytes} bytes, a Unix socket at most {MAX_SOCKET_PATH_BYTES}: \
         use a shorter path or a symbolic link to its directory"
    )]
    PathTooLong {
        /// Its length, in bytes.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_displayed_as_it_is_parsed() {
        for text in [
            "vsock:3:8443",
            "vsock:1:1024",
            "unix:/run/a b.sock",
            "unix:relative",
            "hybrid:/tmp/v.sock:52",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_port_may_be_left_out() {
        assert_eq!("vsock:3".parse(), "vsock:3:8443".parse::<Endpoint>());
        assert_eq!("hybrid:/v".parse(), "hybrid:/v:8443".parse::<Endpoint>());
    }

    #[test]
    fn a_colon_in_a_path_belongs_to_it() {
        let endpoint: Endpoint = "hybrid:/tmp/a:b.sock".parse().unwrap();
        assert_eq!(
            endpoint,
            Endpoint::Hybrid {
                path: "/tmp/a:b.sock".into(),
                port: DEFAULT_PORT
            }
        );
        let endpoint: Endpoint = "unix:/tmp/a:1".parse().unwrap();
        assert_eq!(endpoint, Endpoint::Unix("/tmp/a:1".into()));
    }

    #[test]
    fn an_invalid_endpoint_is_refused() {
        for text in [
            "",
            "demo",
            "vsock:",
            "vsock:any",
            "vsock:3:x",
            "unix:",
            "hybrid:",
            "tcp:h:1",
            "hybrid:/v:99999999999",
        ] {
            text.parse::<Endpoint>().unwrap_err();
        }
    }

    #[test]
    fn a_path_longer_than_sun_path_is_refused() {
        let fits = format!("unix:/{}", "x".repeat(106));
        fits.parse::<Endpoint>().unwrap();
        let too_long = format!("unix:/{}", "x".repeat(107));
        assert_eq!(
            too_long.parse::<Endpoint>(),
            Err(EndpointError::PathTooLong { bytes: 108 })
        );
    }
}
