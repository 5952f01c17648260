//! Data of a READ that go from the connection into a local file: one thread takes them off the
//! connection, another writes them. Nobody else is woken, and a copy has two processors.
//!
//! ```text
//! reader ──► buffer, one of a few ──► lander ──► file
//!    ▲                                   │ └──► who asked for the data
//!    └──────────── free ◄────────────────┘
//! ```
//!
//! To have the kernel move pages instead (`splice`) would leave all of the copying to one processor.

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

/// Where the data of a reply go.
#[derive(Debug, Clone)]
pub(in crate::sftp) struct Landing {
    pub(in crate::sftp) file: Arc<File>,
    /// Of the first byte in the file.
    pub(in crate::sftp) offset: u64,
    /// Bytes that were asked for.
    pub(in crate::sftp) most: u32,
}

/// The thread that writes, and what the reader needs to hand data to it. When this is dropped, the
/// thread writes what it has got and ends.
#[derive(Debug)]
pub(super) struct Lander {
    full: mpsc::SyncSender<Landed>,
    free: mpsc::Receiver<Vec<u8>>,
    /// How long the server may be silent in the middle of a reply.
    silence: Duration,
}

/// Data that were read.
#[derive(Debug)]
struct Landed {
    landing: Landing,
    waiter: Waiter,
    data: Vec<u8>,
}

impl Lander {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When there can be no more threads.
    pub(super) fn start(silence: Duration) -> io::Result<Self> {
        let (full, to_write) = mpsc::sync_channel::<Landed>(BUFFERS);
        let (written, free) = mpsc::sync_channel(BUFFERS);
        for _ in 0..BUFFERS {
            // There is room for all of them.
            let _ = written.try_send(Vec::new());
        }
        let write = move || {
            for landed in to_write {
                // The reader may be gone.
                let _ = written.try_send(landed.write());
            }
        };
        let thread = thread::Builder::new().name("sftp lander".to_owned());
        thread.spawn(write)?;
        Ok(Self {
            full,
            free,
            silence,
        })
    }

    /// Takes `here`, and the next `rest` bytes of the connection, all of them in any case.
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

    /// Has data that were read put into the file; `waiter` is told how that went.
    pub(super) fn land(&self, landing: Landing, waiter: Waiter, data: Vec<u8>) {
        let landed = Landed {
            landing,
            waiter,
            data,
        };
        // The thread stays as long as this does.
        let _ = self.full.send(landed);
    }
}

impl Landed {
    /// Writes the data, tells who waits for them, and gives the buffer back.
    fn write(self) -> Vec<u8> {
        let Self {
            landing,
            waiter,
            data,
        } = self;
        let written = landing.file.write_all_at(&data, landing.offset);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        waiter.landed(written.map(|()| length));
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

    /// Lands `content` behind some bytes, of which `ahead` came with the head, in a file opened by
    /// `options`; gives the result and what the file has then.
    async fn landed(
        name: &str,
        options: &OpenOptions,
        content: &[u8],
        ahead: usize,
    ) -> (io::Result<u32>, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("landing-{}-{name}", std::process::id()));
        fs::write(&path, b"before").unwrap();
        let landing = Landing {
            file: Arc::new(options.open(&path).unwrap()),
            offset: 6,
            most: u32::MAX,
        };
        let (near, mut far) = UnixStream::pair().unwrap();
        let (here, rest) = content.split_at(ahead);
        let table = Arc::new(Table::default());
        let (id, pending) = table.expect(None, None, Some(landing)).unwrap();
        let (landing, waiter) = table.take_landing(id).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                far.write_all(rest).unwrap();
                far.write_all(b"next").unwrap();
            });
            let lander = Lander::start(SILENCE_TIMEOUT).unwrap();
            let data = lander.read(here, &near, rest.len()).unwrap();
            lander.land(landing, waiter, data);
            // What comes behind is still there.
            let mut next = [0; 4];
            (&near).read_exact(&mut next).unwrap();
            assert_eq!(&next, b"next");
        });
        let Answer::Landed(result) = pending.answer().await.unwrap() else {
            panic!("a reply where data were to land");
        };
        let there = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        (result, there)
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect()
    }

    #[tokio::test]
    async fn data_land_behind_what_is_there() {
        let content = content();
        let expected = [b"before", &content[..]].concat();
        let mut write = OpenOptions::new();
        write.write(true);
        for ahead in [0, 1, content.len()] {
            let (result, there) = landed("behind", &write, &content, ahead).await;
            assert_eq!(result.unwrap(), 300_000);
            assert!(there == expected, "{ahead} ahead");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_still_taken_from_the_connection() {
        let mut read = OpenOptions::new();
        read.read(true);
        for ahead in [0, 7] {
            let (result, there) = landed("unwritable", &read, &content(), ahead).await;
            result.unwrap_err();
            assert_eq!(there, b"before");
        }
    }

    #[tokio::test]
    async fn a_buffer_that_was_larger_brings_nothing_of_what_was_in_it() {
        let path = std::env::temp_dir().join(format!("landing-{}-again", std::process::id()));
        let file = Arc::new(File::create(&path).unwrap());
        let (near, mut far) = UnixStream::pair().unwrap();
        let table = Arc::new(Table::default());
        let lander = Lander::start(SILENCE_TIMEOUT).unwrap();
        let mut offset = 0;
        let mut expected = Vec::new();
        // Each buffer comes again.
        for length in [100, 10, 70, 1, 90, 20, 100, 5, 3, 100_u8] {
            let data = vec![length; length.into()];
            far.write_all(&data).unwrap();
            let landing = Landing {
                file: Arc::clone(&file),
                offset,
                most: 100,
            };
            let (id, pending) = table.expect(None, None, Some(landing)).unwrap();
            let (landing, waiter) = table.take_landing(id).unwrap();
            let read = lander.read(&[], &near, data.len()).unwrap();
            lander.land(landing, waiter, read);
            pending.answer().await.unwrap();
            offset += u64::from(length);
            expected.extend(data);
        }
        assert_eq!(fs::read(&path).unwrap(), expected);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_end_in_the_middle_is_one_of_the_connection() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"abc").unwrap();
        drop(far);
        let result = Lander::start(SILENCE_TIMEOUT).unwrap().read(&[], &near, 4);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
