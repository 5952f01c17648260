//! Whole files, with many requests under way at once.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    MIN_DATA_BYTES,
    engine::{MAX_IN_FLIGHT, PendingReply},
    file::{RemoteFile, read_data},
    status,
};
use crate::error::ClientError;

/// Bytes asked for or sent and not answered yet, per file. Enough to keep a connection busy for a
/// round trip of 40 ms at 100 MB/s, which is that of a guest under emulation.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// A request that is under way.
#[derive(Debug)]
struct Read {
    offset: u64,
    length: u32,
    pending: PendingReply,
}

impl RemoteFile {
    /// Copies the file from its start to its end into `sink`, which is flushed but not shut down.
    /// Returns the number of bytes.
    ///
    /// The size the server gives is not believed: the end of the file is where it says so.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] when `sink` fails, [`ClientError::File`] when the agent refuses, or
    /// another [`ClientError`]. What was written to `sink` is then only a part.
    pub async fn get<W>(&self, sink: &mut W) -> Result<u64, ClientError>
    where
        W: AsyncWrite + Unpin,
    {
        let local = |source| ClientError::Local {
            action: "write what was read",
            source,
        };
        let mut piece = self.sftp().sizes.read;
        let mut reads = VecDeque::new();
        let (mut asked, mut done) = (0, 0);
        loop {
            while reads.len() < window(piece) {
                reads.push_back(self.ask(asked, piece).await?);
                asked += u64::from(piece);
            }
            let Some(read) = reads.pop_front() else {
                break;
            };
            let mut rest = read.length;
            let mut reply = read.pending.reply().await?;
            // A reply may be short: the rest of this piece is fetched before the next one.
            let ended = loop {
                let data = read_data(reply, rest)?;
                if data.is_empty() {
                    break true;
                }
                sink.write_all(&data).await.map_err(local)?;
                let bytes = u32::try_from(data.len()).unwrap_or(rest);
                done += u64::from(bytes);
                rest -= bytes;
                if rest == 0 {
                    break false;
                }
                // A server that gives less than asked for is asked for that much from now on.
                piece = piece.min(bytes.max(MIN_DATA_BYTES));
                let offset = read.offset + u64::from(read.length - rest);
                reply = self.start_read(offset, rest).await?.reply().await?;
            };
            if ended {
                break;
            }
        }
        sink.flush().await.map_err(local)?;
        Ok(done)
    }

    async fn ask(&self, offset: u64, length: u32) -> Result<Read, ClientError> {
        Ok(Read {
            offset,
            length,
            pending: self.start_read(offset, length).await?,
        })
    }

    /// Copies `source` into the file, from the file's start. Returns the number of bytes. The file
    /// is neither cut to that length nor closed.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] when `source` fails, [`ClientError::File`] when the agent refuses,
    /// or another [`ClientError`]. The file then holds a part, perhaps with holes.
    pub async fn put<R>(&self, source: &mut R) -> Result<u64, ClientError>
    where
        R: AsyncRead + Unpin,
    {
        let piece = self.sftp().sizes.write;
        let mut writes = VecDeque::new();
        let mut offset = 0;
        loop {
            let data = fill(source, piece).await?;
            let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
            if bytes == 0 {
                break;
            }
            if writes.len() >= window(piece) {
                confirm(&mut writes).await?;
            }
            writes.push_back(self.start_write(offset, data).await?);
            offset += bytes;
        }
        while !writes.is_empty() {
            confirm(&mut writes).await?;
        }
        Ok(offset)
    }
}

/// Requests of `piece` bytes that may be under way at once.
fn window(piece: u32) -> usize {
    let requests = WINDOW_BYTES / piece.max(1);
    usize::try_from(requests)
        .unwrap_or(MAX_IN_FLIGHT)
        .clamp(2, MAX_IN_FLIGHT)
}

/// Waits for the oldest write.
async fn confirm(writes: &mut VecDeque<PendingReply>) -> Result<(), ClientError> {
    match writes.pop_front() {
        Some(pending) => status::done(pending.reply().await?, "write to the file"),
        None => Ok(()),
    }
}

/// Reads `length` bytes, or fewer at the end.
async fn fill<R>(source: &mut R, length: u32) -> Result<Bytes, ClientError>
where
    R: AsyncRead + Unpin,
{
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut buffer = BytesMut::with_capacity(length);
    let mut limited = source.take(u64::try_from(length).unwrap_or(u64::MAX));
    while buffer.len() < length {
        match limited.read_buf(&mut buffer).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(source) => {
                return Err(ClientError::Local {
                    action: "read what is to be written",
                    source,
                });
            }
        }
    }
    Ok(buffer.freeze())
}
