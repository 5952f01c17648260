//! A connection as two blocking halves: plain descriptors, or TLS over one.
//!
//! TLS records are sent in the order in which they were made, because only the holder of the [`Sink`]
//! makes them. No thread waits for the network while it holds the TLS state.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, Shutdown, SockaddrLike, SockaddrStorage, getsockname, recv, send,
        setsockopt, shutdown, sockopt::SndBuf,
    },
};
use rustls::ServerConnection;

pub(super) mod output;

use self::output::{Output, lock};

/// Size of the buffer for incoming TLS records, in bytes: four of the largest (RFC 8446, section 5.2).
const RECORDS_BYTES: usize = 64 * 1024;

/// Size of the send buffer of a Unix socket, in bytes: four of the largest replies.
const SEND_BYTES: usize = 1024 * 1024;

/// A connection whose descriptors block.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(super) source: Source,
    pub(super) sink: Sink,
    pub(super) closer: Closer,
}

impl Channel {
    /// A pair of descriptors that need not be sockets.
    pub(crate) fn pair(input: OwnedFd, output: OwnedFd) -> Self {
        enlarge(&output);
        let input = Arc::new(File::from(input));
        let output = Arc::new(File::from(output));
        Self {
            closer: Closer(Arc::clone(&input)),
            source: Source::Plain(input),
            sink: Sink::Plain(output),
        }
    }

    /// A socket.
    pub(crate) fn plain(socket: OwnedFd) -> Self {
        enlarge(&socket);
        let socket = Arc::new(File::from(socket));
        Self {
            closer: Closer(Arc::clone(&socket)),
            source: Source::Plain(Arc::clone(&socket)),
            sink: Sink::Plain(socket),
        }
    }

    /// A socket on which TLS has shaken hands.
    pub(crate) fn tls(socket: OwnedFd, connection: ServerConnection) -> Self {
        let socket = Arc::new(File::from(socket));
        let connection = Arc::new(Mutex::new(connection));
        Self {
            closer: Closer(Arc::clone(&socket)),
            source: Source::Tls(TlsSource {
                socket: Arc::clone(&socket),
                connection: Arc::clone(&connection),
                records: vec![0; RECORDS_BYTES].into(),
                unread: 0..0,
            }),
            sink: Sink::Tls(TlsSink {
                socket,
                connection,
                records: Vec::new(),
            }),
        }
    }
}

/// Enlarges the send buffer of a Unix socket: with the default size, both processes wait for each
/// other within each of the largest replies. The kernel may grant less.
fn enlarge(output: &OwnedFd) {
    if is_unix(output) {
        let _ = setsockopt(output, SndBuf, &SEND_BYTES);
    }
}

fn is_unix(file: &impl AsRawFd) -> bool {
    getsockname::<SockaddrStorage>(file.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix))
}

/// Shuts a socket down, which wakes the threads that wait for it.
#[derive(Debug, Clone)]
pub(super) struct Closer(Arc<File>);

impl Closer {
    /// Whether the peer has closed the connection, also if data are unread (`POLLHUP`).
    pub(super) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0]
                .revents()
                .is_some_and(|events| events.intersects(gone))
    }

    /// Shuts both directions down. Does nothing to a descriptor that is no socket.
    pub(super) fn shut_down(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

/// The receiving half.
#[derive(Debug)]
pub(super) enum Source {
    Plain(Arc<File>),
    Tls(TlsSource),
}

impl Source {
    /// Reads what there is, and waits if there is nothing. 0 is the end, also if the peer sent no
    /// `close_notify`.
    ///
    /// # Errors
    ///
    /// Errors of the socket, or of TLS as [`io::ErrorKind::Other`].
    pub(super) fn read(&mut self, out: &mut [u8], output: &Output) -> io::Result<usize> {
        match self {
            Self::Plain(file) => read(file, out),
            Self::Tls(tls) => tls.read(out, output),
        }
    }
}

#[derive(Debug)]
pub(super) struct TlsSource {
    socket: Arc<File>,
    connection: Arc<Mutex<ServerConnection>>,
    /// Encrypted, as received.
    records: Box<[u8]>,
    /// The range of them that TLS has not read.
    unread: Range<usize>,
}

impl TlsSource {
    fn read(&mut self, out: &mut [u8], output: &Output) -> io::Result<usize> {
        loop {
            let (got, wants_write) = self.decrypt(out)?;
            if wants_write {
                output.answer_tls()?;
            }
            if let Some(got) = got {
                return got;
            }
            let length = read(&self.socket, &mut self.records)?;
            if length == 0 {
                return Ok(0);
            }
            self.unread = 0..length;
        }
    }

    /// Decrypts what was received. The flag: whether TLS has records to send.
    fn decrypt(&mut self, out: &mut [u8]) -> io::Result<(Option<io::Result<usize>>, bool)> {
        let mut tls = lock(&self.connection);
        loop {
            match tls.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok((Some(Ok(0)), false));
                }
                other => return Ok((Some(other), tls.wants_write())),
            }
            if self.unread.is_empty() {
                return Ok((None, tls.wants_write()));
            }
            let taken = tls.read_tls(&mut &self.records[self.unread.clone()])?;
            self.unread.start += taken;
            if let Err(error) = tls.process_new_packets() {
                return Ok((Some(Err(io::Error::other(error))), tls.wants_write()));
            }
        }
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) enum Sink {
    Plain(Arc<File>),
    Tls(TlsSink),
}

impl Sink {
    /// Writes all of `before`, and `frame`.
    ///
    /// # Errors
    ///
    /// Errors of the socket or of TLS.
    pub(super) fn write(&mut self, before: &[u8], frame: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => write_all(file, [before, frame]),
            Self::Tls(tls) => tls.write([before, frame]),
        }
    }

    /// Sends `close_notify`, if the socket takes it at once.
    pub(super) fn send_close_notify(&mut self) {
        if let Self::Tls(tls) = self {
            let mut connection = lock(&tls.connection);
            connection.send_close_notify();
            // Only `close_notify` is in it: each write sends all its records.
            if connection.write_tls(&mut tls.records).is_ok() {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let _ = send(tls.socket.as_fd().as_raw_fd(), &tls.records, flags);
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct TlsSink {
    socket: Arc<File>,
    connection: Arc<Mutex<ServerConnection>>,
    /// Not sent yet; empty between two calls.
    records: Vec<u8>,
}

impl TlsSink {
    fn write(&mut self, pieces: [&[u8]; 2]) -> io::Result<()> {
        for mut piece in pieces {
            loop {
                let taken = self.encrypt(piece)?;
                piece = &piece[taken..];
                write_all(&self.socket, [&self.records, &[]])?;
                self.records.clear();
                if piece.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Makes records of the front of `piece`, and of TLS's own messages. Returns the bytes taken.
    fn encrypt(&mut self, piece: &[u8]) -> io::Result<usize> {
        let mut tls = lock(&self.connection);
        let taken = tls.writer().write(piece)?;
        while tls.wants_write() {
            tls.write_tls(&mut self.records)?;
        }
        Ok(taken)
    }
}

/// Reads what there is, and waits if there is nothing.
///
/// A thread that waits in `poll` is woken by data only. One that waits in `recv` is also woken
/// whenever the client has read something that another thread sent.
fn read(mut file: &File, out: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(file.as_raw_fd(), out, MsgFlags::MSG_DONTWAIT) {
            Ok(count) => return Ok(count),
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                if let Err(errno) = poll(&mut fds, PollTimeout::NONE)
                    && errno != Errno::EINTR
                {
                    return Err(errno.into());
                }
            }
            Err(Errno::ENOTSOCK) => match file.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            },
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn write_all(mut file: &File, pieces: [&[u8]; 2]) -> io::Result<()> {
    let mut slices = pieces.map(IoSlice::new);
    let mut rest = &mut slices[..];
    // Skips empty slices.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
