//! Write-behind: one thread reads the data of a READ from the connection, another writes them to a
//! local file. No other task is woken, and a copy uses two processors.
//!
//! ```text
//! reader ──► buffer, one of BUFFERS ──► writer ──► file
//!    ▲                                   │ └──► caller
//!    └──────────── free ◄────────────────┘
//! ```
//!
//! `splice(2)` instead would leave all of the copying to one processor.

use std::{
    fs::File,
    io,
    os::unix::{fs::FileExt, net::UnixStream},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::{receive::receive_exact, table::Waiter};

/// Buffers of a connection. With fewer, reader and writer wait for each other.
const BUFFERS: usize = 8;

/// Where the data of a reply are written.
#[derive(Debug, Clone)]
pub(in crate::sftp) struct FileTarget {
    pub(in crate::sftp) file: Arc<File>,
    /// Offset of the first byte in the file.
    pub(in crate::sftp) offset: u64,
    /// Bytes that were requested.
    pub(in crate::sftp) most: u32,
}

/// Handle of the thread that writes. When it is dropped, the thread writes what is queued and ends.
#[derive(Debug)]
pub(super) struct WriteBehind {
    full: mpsc::SyncSender<QueuedWrite>,
    free: mpsc::Receiver<Vec<u8>>,
    /// How long the server may be silent in the middle of a reply.
    silence: Duration,
}

/// Data that were read, and are to be written.
#[derive(Debug)]
struct QueuedWrite {
    target: FileTarget,
    waiter: Waiter,
    data: Vec<u8>,
}

impl WriteBehind {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn start(silence: Duration) -> io::Result<Self> {
        let (full, to_write) = mpsc::sync_channel::<QueuedWrite>(BUFFERS);
        let (written, free) = mpsc::sync_channel(BUFFERS);
        for _ in 0..BUFFERS {
            // The channel holds all of them.
            let _ = written.try_send(Vec::new());
        }
        let write = move || {
            for write in to_write {
                // The reader may be gone.
                let _ = written.try_send(write.write());
            }
        };
        let thread = thread::Builder::new().name("sftp files".to_owned());
        thread.spawn(write)?;
        Ok(Self {
            full,
            free,
            silence,
        })
    }

    /// Gives `here` and the next `rest` bytes of the connection.
    ///
    /// # Errors
    ///
    /// Those of the connection: [`io::ErrorKind::TimedOut`] when it is silent for too long,
    /// [`io::ErrorKind::UnexpectedEof`] when it has ended.
    pub(super) fn read(
        &self,
        here: &[u8],
        stream: &UnixStream,
        rest: usize,
    ) -> io::Result<Vec<u8>> {
        let gone = |_| io::Error::other("the thread that writes is gone");
        let mut data = self.free.recv().map_err(gone)?;
        let (start, end) = (here.len(), here.len() + rest);
        data.resize(end, 0);
        data[..start].copy_from_slice(here);
        receive_exact(stream, &mut data[start..end], self.silence)?;
        Ok(data)
    }

    /// Queues data that were read; `waiter` gets the result.
    pub(super) fn write(&self, target: FileTarget, waiter: Waiter, data: Vec<u8>) {
        let written = QueuedWrite {
            target,
            waiter,
            data,
        };
        // The thread lives as long as `self`.
        let _ = self.full.send(written);
    }
}

impl QueuedWrite {
    /// Writes the data, sends the result to the caller, and gives the buffer back.
    fn write(self) -> Vec<u8> {
        let Self {
            target,
            waiter,
            data,
        } = self;
        let written = target.file.write_all_at(&data, target.offset);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        waiter.written(written.map(|()| length));
        data
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::{Read, Write},
    };

    use super::{
        super::{
            SILENCE_TIMEOUT,
            table::{Answer, Table},
        },
        *,
    };

    /// Writes `content` behind some bytes, of which `ahead` came with the head, in a file opened by
    /// `options`; gives the result and what the file has then.
    async fn written(
        name: &str,
        options: &OpenOptions,
        content: &[u8],
        ahead: usize,
    ) -> (io::Result<u32>, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("target-{}-{name}", std::process::id()));
        fs::write(&path, b"before").unwrap();
        let target = FileTarget {
            file: Arc::new(options.open(&path).unwrap()),
            offset: 6,
            most: u32::MAX,
        };
        let (near, mut far) = UnixStream::pair().unwrap();
        let (here, rest) = content.split_at(ahead);
        let table = Arc::new(Table::default());
        let (id, pending) = table.expect(None, None, Some(target)).unwrap();
        let (target, waiter) = table.take_target(id).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                far.write_all(rest).unwrap();
                far.write_all(b"next").unwrap();
            });
            let writer = WriteBehind::start(SILENCE_TIMEOUT).unwrap();
            let data = writer.read(here, &near, rest.len()).unwrap();
            writer.write(target, waiter, data);
            // What comes behind is still there.
            let mut next = [0; 4];
            (&near).read_exact(&mut next).unwrap();
            assert_eq!(&next, b"next");
        });
        let Answer::Written(result) = pending.answer().await.unwrap() else {
            panic!("a reply instead of written data");
        };
        let there = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        (result, there)
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect()
    }

    #[tokio::test]
    async fn data_are_written_at_their_offset() {
        let content = content();
        let expected = [b"before", &content[..]].concat();
        let mut write = OpenOptions::new();
        write.write(true);
        for ahead in [0, 1, content.len()] {
            let (result, there) = written("behind", &write, &content, ahead).await;
            assert_eq!(result.unwrap(), 300_000);
            assert!(there == expected, "{ahead} ahead");
        }
    }

    #[tokio::test]
    async fn data_that_cannot_be_written_are_still_read_from_the_connection() {
        let mut read = OpenOptions::new();
        read.read(true);
        for ahead in [0, 7] {
            let (result, there) = written("unwritable", &read, &content(), ahead).await;
            result.unwrap_err();
            assert_eq!(there, b"before");
        }
    }

    #[tokio::test]
    async fn a_reused_buffer_does_not_write_its_old_content() {
        let path = std::env::temp_dir().join(format!("target-{}-again", std::process::id()));
        let file = Arc::new(File::create(&path).unwrap());
        let (near, mut far) = UnixStream::pair().unwrap();
        let table = Arc::new(Table::default());
        let writer = WriteBehind::start(SILENCE_TIMEOUT).unwrap();
        let mut offset = 0;
        let mut expected = Vec::new();
        // Each buffer comes again.
        for length in [100, 10, 70, 1, 90, 20, 100, 5, 3, 100_u8] {
            let data = vec![length; length.into()];
            far.write_all(&data).unwrap();
            let target = FileTarget {
                file: Arc::clone(&file),
                offset,
                most: 100,
            };
            let (id, pending) = table.expect(None, None, Some(target)).unwrap();
            let (target, waiter) = table.take_target(id).unwrap();
            let read = writer.read(&[], &near, data.len()).unwrap();
            writer.write(target, waiter, read);
            pending.answer().await.unwrap();
            offset += u64::from(length);
            expected.extend(data);
        }
        assert_eq!(fs::read(&path).unwrap(), expected);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_end_inside_the_data_is_an_unexpected_eof() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"abc").unwrap();
        drop(far);
        let result = WriteBehind::start(SILENCE_TIMEOUT)
            .unwrap()
            .read(&[], &near, 4);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
