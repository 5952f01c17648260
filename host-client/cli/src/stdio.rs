//! Asynchronous stdin, stdout and stderr.
//!
//! A read of a terminal or a pipe can block for ever, and these descriptors must not be made
//! non-blocking, because other processes such as the shell share them. So each stream has a thread
//! that blocks and is not joined when the process ends. The threads also work on a descriptor that
//! another process made non-blocking.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat, makedev},
    unistd::{read, write},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, DuplexStream},
    sync::{mpsc, oneshot},
};
use tokio_util::io::StreamReader;

use crate::output;

/// Bytes read at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Size of the pipe of [`with_stdout`], in bytes.
const PIPE_BYTES: usize = 256 * 1024;

/// Most buffers queued between a thread and its stream.
const QUEUE_DEPTH: usize = 4;

/// Starts reading stdin. The channel closes at end of file, or after an error.
///
/// The null device is at end of file even if it is open for writing only, as `nohup` opens it in
/// place of a terminal.
pub(crate) fn stdin() -> io::Result<mpsc::Receiver<io::Result<Bytes>>> {
    let (sender, receiver) = mpsc::channel(QUEUE_DEPTH);
    if is_null(io::stdin()) {
        return Ok(receiver);
    }
    // Before the first read: `isatty(3)` is false after the terminal has hung up.
    let terminal = io::stdin().is_terminal();
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                let piece = match read_some(&mut buffer, terminal) {
                    Ok(0) => return,
                    Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

/// Starts reading stdin, as [`stdin`] does.
pub(crate) fn stdin_reader() -> io::Result<impl AsyncRead + Send + Unpin> {
    let mut pieces = stdin()?;
    Ok(StreamReader::new(stream::poll_fn(move |cx| {
        pieces.poll_recv(cx)
    })))
}

fn is_null(fd: impl AsFd) -> bool {
    // /dev/null is device 1:3 (Documentation/admin-guide/devices.txt).
    fstat(fd).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
            && stat.st_rdev == makedev(1, 3)
    })
}

fn read_some(buffer: &mut [u8], terminal: bool) -> io::Result<usize> {
    let stdin = io::stdin();
    loop {
        match read(stdin.as_fd(), buffer) {
            Ok(count) => return Ok(count),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(stdin.as_fd(), PollFlags::POLLIN)?,
            // The terminal hung up, or this is a background process of it.
            Err(Errno::EIO) if terminal => return Ok(0),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn wait(fd: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, events)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// An output stream of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sink {
    Stdout,
    Stderr,
}

/// A thread that writes to an output stream.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Bytes>,
    outcome: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    pub(crate) fn start(sink: Sink) -> io::Result<Self> {
        let (queue, mut pieces) = mpsc::channel::<Bytes>(QUEUE_DEPTH);
        let (sender, outcome) = oneshot::channel();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || {
                let mut result = Ok(());
                while let Some(piece) = pieces.blocking_recv() {
                    result = write_all(sink, &piece);
                    if result.is_err() {
                        break;
                    }
                }
                // The receiver may be dropped.
                let _ = sender.send(result);
            })?;
        Ok(Self { queue, outcome })
    }

    /// Queues a buffer. Returns false if writing failed; [`finish`](Self::finish) returns the error.
    pub(crate) async fn write(&self, piece: Bytes) -> bool {
        self.queue.send(piece).await.is_ok()
    }

    /// Waits until all buffers are written.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.queue);
        self.outcome.await.unwrap_or(Ok(()))
    }
}

fn write_all(sink: Sink, mut bytes: &[u8]) -> io::Result<()> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let fd = match sink {
        Sink::Stdout => stdout.as_fd(),
        Sink::Stderr => stderr.as_fd(),
    };
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(fd, PollFlags::POLLOUT)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Copies `reader` to an output stream. A read error ends the copy as end of file does: the owner of
/// the reader reports it.
pub(crate) async fn copy_out(reader: Option<impl AsyncRead + Unpin>, sink: Sink) -> io::Result<()> {
    let Some(mut reader) = reader else {
        return Ok(());
    };
    let writer = Writer::start(sink)?;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(BUFFER_BYTES);
        match reader.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                if !writer.write(buffer.split().freeze()).await {
                    break;
                }
            }
        }
    }
    writer.finish().await.map_err(|error| match sink {
        Sink::Stdout => output::on_stdout(error),
        Sink::Stderr => error,
    })
}

/// Runs `produce` with a pipe to stdout.
///
/// # Errors
///
/// The error of writing to stdout, else that of `produce`.
pub(crate) async fn with_stdout<T>(
    produce: impl AsyncFnOnce(&mut DuplexStream) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (reader, mut writer) = tokio::io::duplex(PIPE_BYTES);
    let producing = async move { produce(&mut writer).await };
    let writing = copy_out(Some(reader), Sink::Stdout);
    let (produced, written) = tokio::join!(producing, writing);
    // Checked first: after it, `produce` fails too.
    written?;
    produced
}
