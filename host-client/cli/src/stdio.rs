//! Stdin and stdout as streams that hold up nothing.
//!
//! A read of a terminal or a pipe can take for ever, and these descriptors must not be made
//! non-blocking: other processes share them, a shell among others. So each direction gets a thread
//! of its own, which blocks and is not waited for when the process ends. The threads work
//! also on a descriptor that another process made non-blocking.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use bytes::{Bytes, BytesMut};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat, makedev},
    unistd::{read, write},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{mpsc, oneshot},
};

use crate::output;

/// Bytes read at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Pieces waiting between a thread and its stream.
const QUEUE_DEPTH: usize = 4;

/// Starts reading stdin. The stream ends at its end, or with an error if it cannot be read.
///
/// The null device has nothing, also for those who may only write to it: that is what `nohup` puts
/// in place of a terminal.
pub(crate) fn stdin() -> io::Result<mpsc::Receiver<io::Result<Bytes>>> {
    let (sender, receiver) = mpsc::channel(QUEUE_DEPTH);
    if is_null(io::stdin()) {
        return Ok(receiver);
    }
    // Asked for now: a terminal that is gone is none any more.
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

fn is_null(fd: impl AsFd) -> bool {
    // Linux's number of /dev/null (Documentation/admin-guide/devices.txt).
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
            // The terminal is gone, or not ours any more.
            Err(Errno::EIO) if terminal => return Ok(0),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, what)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// One of our two outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A thread that writes what it is given.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Bytes>,
    outcome: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(sink: Sink) -> io::Result<Self> {
        let (queue, mut pieces) = mpsc::channel::<Bytes>(QUEUE_DEPTH);
        let (tell, outcome) = oneshot::channel();
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
                // The process may be ending.
                let _ = tell.send(result);
            })?;
        Ok(Self { queue, outcome })
    }

    /// Hands over a piece; false if writing failed, for which see [`finish`](Self::finish).
    pub(crate) async fn write(&self, piece: Bytes) -> bool {
        self.queue.send(piece).await.is_ok()
    }

    /// Waits until everything is written.
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

/// Copies `reader` to one of our outputs, to its end. A reader that breaks ends the copy like one
/// that ends: who owns it knows more about it.
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
