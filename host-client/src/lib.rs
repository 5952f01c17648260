//! The host's side of an agent in a virtual machine: run commands and move files, over vsock.
//!
//! ```no_run
//! use vsock_agent_client::{Client, Endpoint, Identity, Security};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let endpoint: Endpoint = "vsock:3".parse()?;
//! let identity = Identity::load("identity".as_ref(), "demo")?;
//! let client = Client::new(endpoint, Security::Tls(identity));
//! let output = client.exec("uname", ["-a"]).output().await?;
//! print!("{}", String::from_utf8_lossy(&output.stdout));
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] is one agent at one [`Endpoint`]. [`Exec`] starts a command, [`ExecSession`] is one
//! that runs, [`Sftp`] is a file session. Errors are a [`ClientError`], which distinguishes a failed
//! connection, an error of the agent and a lost connection.
//!
//! The agent is not trusted: everything it sends is checked and limited in size. Its messages and file
//! names are returned unchanged; escape them before printing them to a terminal.
//!
//! It needs a tokio runtime with I/O and time.

mod client;
mod connect;
pub mod copy;
mod endpoint;
mod error;
mod exec;
mod http;
mod identity;
mod operation;
mod sftp;
mod tls;
mod ws;

pub use vsock_agent_protocol as protocol;
pub use vsock_agent_protocol::sftp::SessionOptions;

pub use self::{
    client::{Client, Events, Timeouts},
    endpoint::{Endpoint, EndpointError},
    error::{ClientError, ConnectError, FileStatus},
    exec::{
        Account, Exec, ExecControl, ExecReader, ExecSession, ExecStdin, ExitStatus, OnDisconnect,
        Output, TerminalSize,
    },
    identity::IdentityFiles,
    sftp::{DirectoryEntry, DirectoryReader, OpenFlags, RawSftp, RemoteFile, RemotePath, Sftp},
    tls::{Identity, IdentityError, IdentityPem, Security},
};

#[cfg(feature = "identity")]
pub use self::identity::{GUEST_FILES, GeneratedIdentity};
