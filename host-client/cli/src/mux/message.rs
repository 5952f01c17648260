//! What a call and the process say to each other: a request and its reply, JSON after its length in four
//! bytes. After [`Reply::Ready`] the socket is an HTTP/2 connection.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::anyhow;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vsock_agent_client::IdentityFiles;

/// The version of these messages. A process of another version is not used.
const VERSION: u32 = 1;

/// Largest message, in bytes: a status of all connections, each with the longest path of a socket.
const MAX_BYTES: usize = 64 * 1024;

/// A message with its version.
#[derive(Debug, Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    message: T,
}

/// What is asked of the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// A connection to an agent.
    Call(Agent),
    /// A list of the connections.
    Status,
    /// To end.
    Stop,
}

/// The agent of a call.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Agent {
    /// With an absolute path.
    pub(super) endpoint: String,
    /// `None` without TLS.
    pub(super) identity: Option<Files>,
    /// Seconds after which a silent agent is lost, if given.
    pub(super) silence: Option<u64>,
}

/// The absolute paths of [`IdentityFiles`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    agent: PathBuf,
}

impl Files {
    /// Makes the paths absolute.
    pub(super) fn of(files: &IdentityFiles) -> io::Result<Self> {
        Ok(Self {
            certificate: std::path::absolute(&files.certificate)?,
            key: std::path::absolute(&files.key)?,
            agent: std::path::absolute(&files.agent)?,
        })
    }
}

impl From<Files> for IdentityFiles {
    fn from(files: Files) -> Self {
        Self {
            certificate: files.certificate,
            key: files.key,
            agent: files.agent,
        }
    }
}

/// What the process replies.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// The socket is an HTTP/2 connection to the agent now.
    Ready,
    /// There is no connection to the agent, and why.
    Refused(String),
    /// The connections.
    Status(Status),
    /// It has removed its socket, and ends.
    Stopped,
}

impl Reply {
    /// The error for a reply to another request.
    pub(super) fn unexpected(&self) -> anyhow::Error {
        anyhow!("the process in the background replied {self:?}")
    }
}

/// The state of the process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) pid: u32,
    pub(super) connections: Vec<Listed>,
}

/// A connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) endpoint: String,
    /// Whether it has TLS.
    pub(super) tls: bool,
    /// When it was made, in seconds since 1970.
    pub(super) since: u64,
    /// Calls that use it now.
    pub(super) streams: usize,
}

impl Listed {
    /// A row of a table.
    pub(super) fn row(&self) -> Vec<String> {
        let age = now().saturating_sub(self.since);
        vec![
            self.endpoint.clone(),
            if self.tls { "tls" } else { "plain" }.to_owned(),
            format!("{age} s"),
            format!("{} streams", self.streams),
        ]
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// Sends a request, and waits for the reply.
///
/// # Errors
///
/// Those of the socket; that it took longer than `limit`; [`InvalidData`](io::ErrorKind::InvalidData) for
/// what is no reply of this version.
pub(super) fn ask(
    socket: &mut UnixStream,
    request: &Request,
    limit: Duration,
) -> io::Result<Reply> {
    socket.set_write_timeout(Some(limit))?;
    socket.set_read_timeout(Some(limit))?;
    socket.write_all(&encode(request)?)?;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut json = vec![0; checked(length)?];
    socket.read_exact(&mut json)?;
    decode(&json)
}

/// Reads a request.
///
/// # Errors
///
/// Those of the socket; [`InvalidData`](io::ErrorKind::InvalidData) for what is no request of this version.
pub(super) async fn receive(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).await?;
    let mut json = vec![0; checked(length)?];
    socket.read_exact(&mut json).await?;
    decode(&json)
}

/// Sends a reply.
///
/// # Errors
///
/// Those of the socket.
pub(super) async fn send(socket: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    socket.write_all(&encode(reply)?).await
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let version = VERSION;
    let json = serde_json::to_vec(&Versioned { version, message })?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes()[..], &json].concat())
}

fn checked(length: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    (length <= MAX_BYTES)
        .then_some(length)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    let message: Versioned<T> = serde_json::from_slice(json)?;
    if message.version == VERSION {
        return Ok(message.message);
    }
    let text = format!("its messages have version {}", message.version);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}
