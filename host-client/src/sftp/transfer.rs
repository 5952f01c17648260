//! Transfers of files, with many requests in flight.

use std::{collections::VecDeque, sync::Arc};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    MIN_DATA_BYTES,
    engine::{Credit, FileRange, LocalSource, Payload, PendingReply},
    file::{Pending, RemoteFile, read_data},
    status,
};
use crate::error::ClientError;

/// Most requests of one file under way. The bytes in them are bounded by the session's window.
const MAX_REQUESTS: usize = 64;

/// Most pieces that are written to a local file at once.
pub(crate) const BATCH: usize = 8;

impl RemoteFile {
    /// Copies the file from its start to its end into `sink`, which is flushed but not shut down.
    /// Returns the number of bytes.
    ///
    /// The size from the server is not used: the end is where the server answers end of file.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, `sink` has a part of the file.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] when `sink` fails, [`ClientError::File`] when the agent refuses, or
    /// another [`ClientError`]. What was written to `sink` is then only a part.
    pub async fn get<W>(&self, sink: &mut W) -> Result<u64, ClientError>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        let local = |source| ClientError::Local {
            endpoint: self.sftp().endpoint().cloned(),
            action: "write what was read",
            source,
        };
        let mut reads = self.reads(0, u64::MAX, None);
        while let Some(chunk) = reads.next().await? {
            sink.write_all(&chunk.data).await.map_err(local)?;
        }
        sink.flush().await.map_err(local)?;
        Ok(reads.position())
    }

    /// Reads from `start` to `end`, or to the end of the file if that comes first. With a guess
    /// where that is, not much is asked for in vain.
    pub(crate) fn reads(&self, start: u64, end: u64, guess: Option<u64>) -> Reads<'_> {
        Reads {
            file: self,
            piece: self.sftp().sizes.read,
            queue: VecDeque::new(),
            asked: start,
            done: start,
            end,
            guess: guess.unwrap_or(u64::MAX).min(end),
        }
    }

    /// Copies `source` into the file, from the file's start. Returns the number of bytes. The file
    /// is neither cut to that length nor closed.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, a part of `source` is read and written, perhaps with holes.
    ///
    /// # Errors
    ///
    /// [`ClientError::Local`] when `source` fails, [`ClientError::File`] when the agent refuses,
    /// or another [`ClientError`]. The file then holds a part, perhaps with holes.
    pub async fn put<R>(&self, source: &mut R) -> Result<u64, ClientError>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        self.put_with_progress(source, |_| Ok(())).await
    }

    /// The same; `moved` is called with the size of each piece that arrived.
    pub(crate) async fn put_with_progress<R, E>(
        &self,
        source: &mut R,
        moved: impl Fn(u64) -> Result<(), E>,
    ) -> Result<u64, E>
    where
        R: AsyncRead + Unpin + ?Sized,
        E: From<ClientError>,
    {
        let mut writes = self.writes();
        let mut offset = 0;
        loop {
            let filled = fill(source, self.sftp().sizes.write).await;
            let data = filled.map_err(|error| self.sftp().at(error))?;
            let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
            if bytes == 0 {
                break;
            }
            moved(writes.write(offset, Payload::Bytes(data)).await?)?;
            offset += bytes;
        }
        moved(writes.finish().await?)?;
        Ok(offset)
    }

    /// Sends `start` to `end` of a local file to the same offset, and calls `moved` for each piece
    /// that arrived. The caller must ask `source` whether all of it could be read.
    pub(crate) async fn send<E: From<ClientError>>(
        &self,
        source: &Arc<LocalSource>,
        start: u64,
        end: u64,
        mut moved: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut writes = self.writes();
        let mut offset = start;
        while offset < end && !source.is_broken() {
            let piece = self.sftp().sizes.write;
            let length = u32::try_from(end - offset).map_or(piece, |left| left.min(piece));
            let range = FileRange {
                source: Arc::clone(source),
                offset,
                length,
            };
            moved(writes.write(offset, Payload::File(range)).await?)?;
            offset += u64::from(length);
        }
        moved(writes.finish().await?)
    }

    /// Sends `data` to the start of the file; the reply is still to come.
    pub(crate) async fn write_small(&self, data: Bytes) -> Result<Pending, ClientError> {
        let payload = Payload::Bytes(data);
        let credit = self.sftp().engine.credit(payload.len()).await;
        let pending = self.start_write(0, payload, credit).await?;
        Ok(Pending::new(pending, "write to the file"))
    }

    const fn writes(&self) -> Writes<'_> {
        Writes {
            file: self,
            queue: VecDeque::new(),
        }
    }
}

/// Reads of a file that are under way.
#[derive(Debug)]
pub(crate) struct Reads<'a> {
    file: &'a RemoteFile,
    piece: u32,
    queue: VecDeque<Read>,
    asked: u64,
    done: u64,
    end: u64,
    guess: u64,
}

/// A read that is under way.
#[derive(Debug)]
struct Read {
    length: u32,
    pending: PendingReply,
}

/// A piece of a file. The session's window counts its data for as long as they are kept.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    /// Never empty.
    pub(crate) data: Bytes,
    _credit: Option<Credit>,
}

impl Reads<'_> {
    /// Where the next chunk starts: at the end, how long the file is.
    pub(crate) const fn position(&self) -> u64 {
        self.done
    }

    /// Whether [`next`](Self::next) has a piece without waiting.
    pub(crate) fn is_here(&mut self) -> bool {
        let front = self.queue.front_mut();
        front.is_some_and(|read| read.pending.is_here())
    }

    /// The next piece, in order; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Chunk>, ClientError> {
        self.ask().await?;
        let Some(read) = self.queue.pop_front() else {
            return Ok(None);
        };
        let (reply, credit) = read.pending.answer().await?;
        let data = read_data(reply, read.length);
        let data = data.map_err(|error| self.file.sftp().at(error))?;
        let bytes = u32::try_from(data.len()).unwrap_or(read.length);
        if bytes == 0 {
            self.queue.clear();
            self.end = self.done;
            return Ok(None);
        }
        let offset = self.done;
        self.done += u64::from(bytes);
        let length = read.length - bytes;
        if length > 0 {
            // A reply may be short: the rest comes before anything else. A server that gives less
            // than asked for is asked for that much from now on.
            self.piece = self.piece.min(bytes.max(MIN_DATA_BYTES));
            let pending = self.file.start_read_at(self.done, length, None).await?;
            self.queue.push_front(Read { length, pending });
        }
        Ok(Some(Chunk {
            offset,
            data,
            _credit: credit,
        }))
    }

    /// Asks for as much as may be on its way. Waits only if nothing is: what was answered and not
    /// taken yet holds the window too.
    async fn ask(&mut self) -> Result<(), ClientError> {
        let engine = &self.file.sftp().engine;
        while self.queue.len() < MAX_REQUESTS && self.asked < self.end {
            if !self.queue.is_empty() && self.asked >= self.guess {
                break;
            }
            let left = u32::try_from(self.end - self.asked).unwrap_or(u32::MAX);
            let length = left.min(self.piece);
            let credit = if self.queue.is_empty() {
                engine.credit(length).await
            } else {
                match engine.try_credit(length) {
                    None => break,
                    credit => credit,
                }
            };
            let pending = self.file.start_read_at(self.asked, length, credit).await?;
            self.queue.push_back(Read { length, pending });
            self.asked += u64::from(length);
        }
        Ok(())
    }
}

/// Writes to a file that are under way.
#[derive(Debug)]
struct Writes<'a> {
    file: &'a RemoteFile,
    queue: VecDeque<(u32, PendingReply)>,
}

impl Writes<'_> {
    /// Sends one more; returns how many bytes were found to have arrived.
    async fn write(&mut self, offset: u64, payload: Payload) -> Result<u64, ClientError> {
        let engine = &self.file.sftp().engine;
        let length = payload.len();
        let mut arrived = 0;
        let credit = loop {
            let credit = if self.queue.len() < MAX_REQUESTS {
                engine.try_credit(length)
            } else {
                None
            };
            if credit.is_some() {
                break credit;
            }
            let middle = self.queue.len() / 2;
            match self.queue.get_mut(middle) {
                Some((_, pending)) => pending.arrived().await,
                None => break engine.credit(length).await,
            }
            arrived += self.confirm().await?;
            while self
                .queue
                .front_mut()
                .is_some_and(|(_, next)| next.is_here())
            {
                arrived += self.confirm().await?;
            }
        };
        let pending = self.file.start_write(offset, payload, credit).await?;
        self.queue.push_back((length, pending));
        Ok(arrived)
    }

    /// Waits for the oldest.
    async fn confirm(&mut self) -> Result<u64, ClientError> {
        match self.queue.pop_front() {
            Some((length, pending)) => {
                pending
                    .read(|reply| status::done(reply, "write to the file"))
                    .await?;
                Ok(length.into())
            }
            None => Ok(0),
        }
    }

    async fn finish(mut self) -> Result<u64, ClientError> {
        let mut arrived = 0;
        while !self.queue.is_empty() {
            arrived += self.confirm().await?;
        }
        Ok(arrived)
    }
}

/// Reads `length` bytes, or fewer at the end.
async fn fill<R>(source: &mut R, length: u32) -> Result<Bytes, ClientError>
where
    R: AsyncRead + Unpin + ?Sized,
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
                    endpoint: None,
                    action: "read what is to be written",
                    source,
                });
            }
        }
    }
    Ok(buffer.freeze())
}
