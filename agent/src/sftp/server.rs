//! A session: frames in, frames out.
//!
//! Whatever is wrong with the stream itself, a read error, an over-long frame, an end in the
//! middle of one, ends the session: what follows could not be told from the contents of a file.
//! What is wrong with one request is answered with its id.

use std::{io, path::PathBuf};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::spawn_blocking,
};
use vsock_agent_protocol::sftp::{DecodeError, FrameHead, Reply, Request, VERSION};

use super::{
    SftpError,
    files::{EXTENSIONS, Files},
};

/// Size of the replies, in bytes, at which they are sent before the next request is taken.
const REPLY_BATCH_BYTES: usize = 1024 * 1024;

/// Room made for incoming data at a time, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// Why a session ended before its client wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client does not speak SFTP")]
    Decode(#[from] DecodeError),
    #[error("the client did not start with INIT")]
    NoInit,
}

/// Serves one client until it closes the connection. All its files are closed then.
///
/// # Errors
///
/// [`SessionError`], when the connection ended in another way.
pub(crate) async fn serve<S>(mut stream: S) -> Result<(), SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut input = BytesMut::new();
    let mut output = BytesMut::new();
    let Some(first) = next_frame(&mut stream, &mut input).await? else {
        return Ok(());
    };
    match Request::decode(first)? {
        (_, Request::Init { version }) => greeting(version).encode(0, &mut output),
        _ => return Err(SessionError::NoInit),
    }
    let home = spawn_blocking(home).await.map_err(io::Error::from)?;
    let mut files = Files::new(home);
    loop {
        stream.write_all(&output).await?;
        stream.flush().await?;
        output.clear();
        let Some(frame) = next_frame(&mut stream, &mut input).await? else {
            return Ok(());
        };
        // What has arrived with the first is done in the same turn on the other thread.
        let turn = (files, frame, input, output);
        (files, input, output) = spawn_blocking(move || do_what_is_there(turn))
            .await
            .map_err(io::Error::from)??;
    }
}

/// Does `first`, and every whole request in `input`.
fn do_what_is_there(
    (mut files, first, mut input, mut output): (Files, Bytes, BytesMut, BytesMut),
) -> Result<(Files, BytesMut, BytesMut), DecodeError> {
    let mut next = Some(first);
    while let Some(frame) = next {
        let (id, reply) = match Request::decode(frame) {
            Ok((id, request)) => (id, files.answer(request)),
            Err(DecodeError::UnknownType { id: Some(id), .. }) => {
                (id, SftpError::Unsupported.into())
            }
            Err(DecodeError::Malformed { id: Some(id), .. }) => {
                (id, SftpError::BadMessage("the request is malformed").into())
            }
            // Nobody could be told what it was about.
            Err(error) => return Err(error),
        };
        reply.encode(id, &mut output);
        next = match output.len() < REPLY_BATCH_BYTES {
            true => take_frame(&mut input)?,
            false => None,
        };
    }
    Ok((files, input, output))
}

/// The next frame's body. `None` when the client has closed the connection between two frames.
async fn next_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut BytesMut,
) -> Result<Option<Bytes>, SessionError> {
    loop {
        if let Some(frame) = take_frame(input)? {
            return Ok(Some(frame));
        }
        input.reserve(READ_BYTES);
        // A client that goes without a goodbye, of TLS too, says the same: no more requests.
        let read = match stream.read_buf(input).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            other => other?,
        };
        if read == 0 {
            return match input.is_empty() {
                true => Ok(None),
                false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            };
        }
    }
}

/// Takes a whole frame off the front of `input`, if there is one.
fn take_frame(input: &mut BytesMut) -> Result<Option<Bytes>, DecodeError> {
    let Some(head) = input.first_chunk() else {
        return Ok(None);
    };
    let head = FrameHead::parse(*head)?;
    let body_bytes = usize::try_from(head.body_bytes).unwrap_or(usize::MAX);
    if input.len() - FrameHead::BYTES < body_bytes {
        return Ok(None);
    }
    let mut frame = input.split_to(FrameHead::BYTES + body_bytes);
    Ok(Some(frame.split_off(FrameHead::BYTES).freeze()))
}

fn greeting(client: u32) -> Reply {
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    Reply::Version {
        version: VERSION.min(client),
        extensions: EXTENSIONS
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
    }
}

/// Where relative paths start: the home of whom the agent runs as, or the root.
fn home() -> PathBuf {
    let home = if nix::unistd::geteuid().is_root() {
        Some("/root".into())
    } else {
        std::env::home_dir()
    };
    home.filter(|home| home.is_dir())
        .unwrap_or_else(|| PathBuf::from("/"))
}
