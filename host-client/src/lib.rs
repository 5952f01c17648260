//! Runs commands and moves files in virtual machines, over vsock: a client for `vsock-agent`, and for
//! the agents of LXD and Incus. It needs a tokio runtime with I/O and time.
//!
//! ```no_run
//! use vsock_agent_client::{Client, Endpoint, Identity, Security};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let endpoint: Endpoint = "vsock:3".parse()?;
//!     let identity = Identity::load("identity".as_ref(), "vm")?;
//!     let client = Client::new(endpoint, Security::Tls(identity));
//!
//!     let output = client.exec("uname", ["-a"]).output().await?;
//!     print!("{}", String::from_utf8_lossy(&output.stdout));
//!     if output.status.success() {
//!         Ok(())
//!     } else {
//!         Err(format!("uname ended with {}", output.status).into())
//!     }
//! }
//! ```
//!
//! # Beside tokio's `Command`
//!
//! A script that runs for some time at most, with both of its outputs as they come, and its exit status. In a
//! guest:
//!
//! ```no_run
//! # use std::{error::Error, time::Duration};
//! # use tokio::{io::{copy, stderr, stdout}, time::timeout};
//! # use vsock_agent_client::Client;
//! #
//! async fn in_guest(client: &Client, script: &str, limit: Duration) -> Result<i32, Box<dyn Error>> {
//!     let mut session = client.exec("sh", ["-c", script]).stdin("").start().await?;
//!     let mut out = session.take_stdout().ok_or("taken")?;
//!     let mut err = session.take_stderr().ok_or("taken")?;
//!     let (mut to_out, mut to_err) = (stdout(), stderr());
//!     let shown =
//!         async { tokio::try_join!(copy(&mut out, &mut to_out), copy(&mut err, &mut to_err)) };
//!     if timeout(limit, shown).await.is_err() {
//!         session.kill().await?;
//!     }
//!     Ok(session.wait().await?.code)
//! }
//! ```
//!
//! On this computer:
//!
//! ```
//! # use std::{error::Error, process::Stdio, time::Duration};
//! # use tokio::{io::{copy, stderr, stdout}, process::Command, time::timeout};
//! #
//! async fn here(script: &str, limit: Duration) -> Result<Option<i32>, Box<dyn Error>> {
//!     let mut child = Command::new("sh")
//!         .args(["-c", script])
//!         .stdin(Stdio::null())
//!         .stdout(Stdio::piped())
//!         .stderr(Stdio::piped())
//!         .kill_on_drop(true)
//!         .spawn()?;
//!     let mut out = child.stdout.take().ok_or("taken")?;
//!     let mut err = child.stderr.take().ok_or("taken")?;
//!     let (mut to_out, mut to_err) = (stdout(), stderr());
//!     let shown =
//!         async { tokio::try_join!(copy(&mut out, &mut to_out), copy(&mut err, &mut to_err)) };
//!     if timeout(limit, shown).await.is_err() {
//!         child.kill().await?;
//!     }
//!     Ok(child.wait().await?.code())
//! }
//! # #[tokio::main]
//! # async fn main() {
//! #     let minute = Duration::from_secs(60);
//! #     assert_eq!(here("exit 3", minute).await.unwrap(), Some(3));
//! #     assert_eq!(here("sleep 60", Duration::ZERO).await.unwrap(), None);
//! # }
//! ```
//!
//! What differs: a command in a guest ends when its session is dropped; [`ExecSession::wait`] waits for the
//! rest of its output too, and fails if some of it is missing; and who does not need the two readers takes
//! [`ExecSession::into_events`], one stream of output and exit status. [`Exec::output`] is as tokio's.
//!
//! # A command with a terminal
//!
//! [`Exec::start`] returns an [`ExecSession`] with the streams of the command as tokio's `AsyncRead` and
//! `AsyncWrite`. Dropping the session ends the command.
//!
//! ```no_run
//! use std::error::Error;
//!
//! use tokio::io::{copy, stdin, stdout};
//! use vsock_agent_client::{Client, ExitStatus, TerminalSize};
//!
//! async fn shell(client: &Client) -> Result<ExitStatus, Box<dyn Error>> {
//!     let size = TerminalSize { columns: 80, lines: 25 };
//!     let mut session = client.exec("bash", ["-l"]).env("TERM", "xterm").tty(size).start().await?;
//!     let mut input = session.take_stdin().ok_or("taken before")?;
//!     let mut output = session.take_stdout().ok_or("taken before")?;
//!
//!     // At the end of standard input `input` is dropped, which sends Ctrl-D.
//!     tokio::spawn(async move { copy(&mut stdin(), &mut input).await });
//!     copy(&mut output, &mut stdout()).await?;
//!     Ok(session.wait().await?)
//! }
//! ```
//!
//! [`ExecSession::control`] sends window sizes and signals.
//!
//! # Files
//!
//! [`Client::sftp`] starts a file session, [`Sftp`]. [`copy`] copies files and trees; a
//! [`CopyJob`](copy::CopyJob) owns its arguments, and tells its progress as a stream:
//!
//! ```no_run
//! use vsock_agent_client::{Client, copy::{CopyError, CopyJob}};
//!
//! async fn upload(client: &Client) -> Result<(), CopyError> {
//!     let sftp = client.sftp().await?;
//!     let summary = CopyJob::push(&sftp, ["notes.txt"], "/root/").await?;
//!     println!("{} bytes", summary.bytes);
//!     Ok(())
//! }
//! ```
//!
//! # Ports, state, events
//!
//! [`Client::port_forward`] is a connection to a TCP port of the guest, [`Client::state`] and
//! [`Client::metrics`] are its numbers, and [`Client::events`] a stream of what happens, which may be
//! [reconnecting](Events::reconnecting). [`Client::wait_ready`] waits for a machine that was just started.
//! [`Client::request`] and [`Client::upgrade`] are for everything else that an agent can do.
//!
//! # Operation of a program
//!
//! Calls, commands and copies have `tracing` spans at the level `debug`, with the endpoint, and never with
//! arguments or the content of variables. [`Client::counters`] is for metrics. The crate
//! `vsock-agent-testing` starts an agent in the process of a test.
//!
//! # Endpoints
//!
//! An [`Endpoint`] is `vsock:CID[:PORT]` for AF_VSOCK, `hybrid:PATH[:PORT]` for the Unix socket of
//! Firecracker, Cloud Hypervisor or vhost-device-vsock, or `unix:PATH`. Connecting is tried again
//! while a machine boots, up to [`Timeouts::connect`].
//!
//! # Errors
//!
//! Every request fails with a [`ClientError`]. [`Connect`](ClientError::Connect) means that nothing was
//! sent; its [`ConnectError`] says why. [`Agent`](ClientError::Agent) and [`File`](ClientError::File) are
//! the agent's own errors. After [`ConnectionLost`](ClientError::ConnectionLost) and
//! [`Silent`](ClientError::Silent) the request may or may not have been executed. The exit status of a
//! command is no error: see [`ExitStatus`].
//!
//! Each error has an [`ErrorKind`], and the [`endpoint`](ClientError::endpoint) of its agent. A request is
//! worth another try if the error [`is_retryable`](ClientError::is_retryable); a command that must not run
//! twice, if in addition it cannot [have run](ClientError::may_have_run).
//!
//! The agent is not trusted: everything it sends is checked and limited in size. Its messages and file
//! names are returned unchanged; escape them before printing them to a terminal
//! ([`protocol::printable::escape`]).
//!
//! # Other crates
//!
//! Traits are those of tokio (`AsyncRead`, `AsyncWrite`), futures (`Stream`) and serde. Values that have no
//! type of their own are [`serde_json::Value`]. The frames of SFTP in [`protocol`], which no method needs,
//! hold `bytes::Bytes`; so do the vendor-specific attributes of a file.
//!
//! # Features
//!
//! `identity` makes keys and certificates (`Identity::generate`).

mod agent;
mod client;
mod connect;
pub mod copy;
mod counters;
mod endpoint;
mod error;
mod events;
mod exec;
mod http;
mod identity;
mod operation;
#[cfg(feature = "relay")]
mod relay;
mod reply;
mod runtime;
mod sftp;
mod timeouts;
mod tls;
mod ws;

pub use vsock_agent_protocol as protocol;
pub use vsock_agent_protocol::sftp::SessionOptions;

pub use self::{
    client::Client,
    connect::AgentStream,
    counters::Counters,
    endpoint::{Endpoint, EndpointError},
    error::{ClientError, ConnectError, ErrorKind, SftpError},
    events::{Events, Received, ReconnectingEvents},
    exec::{
        Account, Exec, ExecControl, ExecEvent, ExecEvents, ExecReader, ExecSession, ExecStdin,
        ExitStatus, OnDisconnect, Output, TerminalSize,
    },
    identity::IdentityFiles,
    reply::{Method, Reply},
    sftp::{
        AccountNames, DirectoryEntry, DirectoryReader, FileData, OpenOptions, RemoteFile,
        RemotePath, Sftp,
    },
    timeouts::Timeouts,
    tls::{Identity, IdentityError, IdentityPem, Security},
};

#[cfg(feature = "identity")]
pub use self::identity::{GUEST_FILES, GeneratedIdentity};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_types_can_be_sent_and_shared_between_threads() {
        const fn check<T: Send + Sync>() {}
        check::<Client>();
        check::<ClientError>();
        check::<Events>();
        check::<ReconnectingEvents>();
        check::<copy::CopyEvents>();
        check::<Exec>();
        check::<ExecControl>();
        check::<ExecEvents>();
        check::<ExecReader>();
        check::<ExecSession>();
        check::<ExecStdin>();
        check::<Identity>();
        check::<RemoteFile>();
        check::<Sftp>();
    }
}
