//! A connection as two blocking halves: plain descriptors, or TLS over one.
//!
//! TLS records leave in the order in which they were made, because only who holds the [`Sink`]
//! makes them. Nobody waits for the network while holding the TLS state.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
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

use super::pipe::Pipe;

/// Room for arriving TLS records, in bytes: some of the largest (RFC 8446, section 5.2).
const RECORDS_BYTES: usize = 64 * 1024;

/// Size of the send buffer of a Unix socket, in bytes: some of the largest replies.
const SEND_BYTES: usize = 1024 * 1024;

/// A connection whose descriptors block.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(super) source: Source,
    pub(super) sink: Sink,
    pub(super) closer: Closer,
    /// Whether it is a pair of standard streams.
    is_pair: bool,
}

impl Channel {
    /// A pair of descriptors that need not be sockets.
    pub(crate) fn pair(input: OwnedFd, output: OwnedFd) -> Self {
        enlarge(&output);
        let input = Arc::new(File::from(input));
        let output = Arc::new(File::from(output));
        Self {
            closer: Closer(Arc::clone(&input)),
            is_pair: true,
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
            is_pair: false,
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
            is_pair: false,
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

impl Channel {
    /// Whether pages of files are lent to the connection, by way of a pipe. Unix sockets take them;
    /// `AF_VSOCK` copies them, before Linux 6.5 into a packet for each page.
    pub(super) fn lends(&self) -> bool {
        match &self.sink {
            // Programs that start a server on standard streams copy what they get, and are done
            // sooner if the server's processor has just had it in its cache.
            Sink::Plain(sink) => !self.is_pair && is_unix(sink),
            Sink::Tls(_) => false,
        }
    }
}

/// Has the kernel take more before the client has read it, if this is a Unix socket: with the usual
/// size, two processes wait for each other within each of the largest replies. It may allow less.
fn enlarge(output: &OwnedFd) {
    if is_unix(output) {
        let _ = setsockopt(output, SndBuf, &SEND_BYTES);
    }
}

fn is_unix(file: &impl AsRawFd) -> bool {
    getsockname::<SockaddrStorage>(file.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix))
}

/// Wakes whoever waits for a socket, by ending it.
#[derive(Debug, Clone)]
pub(super) struct Closer(Arc<File>);

impl Closer {
    /// Whether the peer is gone for good, read or not.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0]
                .revents()
                .is_some_and(|events| events.intersects(gone))
    }

    /// Ends both directions. What is no socket is left alone.
    pub(super) fn hang_up(&self) {
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

/// Where requests come from.
#[derive(Debug)]
pub(super) enum Source {
    Plain(Arc<File>),
    Tls(TlsSource),
}

impl Source {
    /// Reads what there is, and waits if there is nothing. 0 is the end; a peer that goes without
    /// a goodbye, of TLS too, has ended as well.
    ///
    /// # Errors
    ///
    /// What the kernel or TLS says.
    pub(super) fn read(&mut self, out: &mut [u8], sink: &Mutex<Sink>) -> io::Result<usize> {
        match self {
            Self::Plain(file) => read(file, out),
            Self::Tls(tls) => tls.read(out, sink),
        }
    }
}

#[derive(Debug)]
pub(super) struct TlsSource {
    socket: Arc<File>,
    connection: Arc<Mutex<ServerConnection>>,
    /// As they came.
    records: Box<[u8]>,
    /// What of them TLS has not seen.
    unread: Range<usize>,
}

impl TlsSource {
    fn read(&mut self, out: &mut [u8], sink: &Mutex<Sink>) -> io::Result<usize> {
        loop {
            let (got, has_to_say) = self.decrypt(out)?;
            // A key update to answer, or an alert. If the sink is taken, its holder sends it.
            if has_to_say && let Ok(mut sink) = sink.try_lock() {
                sink.write(&[], Outgoing::EMPTY)?;
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

    /// Takes what is there, and tells whether TLS has something to say.
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

/// A frame to be sent.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) bytes: &'a [u8],
    /// What comes behind them; only if the channel [lends](Channel::lends).
    pub(super) lent: Option<&'a mut Pipe>,
}

impl Outgoing<'_> {
    pub(super) const EMPTY: Self = Self {
        bytes: &[],
        lent: None,
    };
}

impl<'a> From<&'a [u8]> for Outgoing<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, lent: None }
    }
}

/// Where replies go.
#[derive(Debug)]
pub(super) enum Sink {
    Plain(Arc<File>),
    Tls(TlsSink),
}

impl Sink {
    /// Writes frames, and one more, whole.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn write(&mut self, before: &[u8], frame: Outgoing<'_>) -> io::Result<()> {
        let pieces = [before, frame.bytes];
        match self {
            Self::Plain(file) => {
                write_all(file, pieces)?;
                frame.lent.map_or(Ok(()), |pipe| pipe.empty_into(&**file))
            }
            Self::Tls(tls) => tls.write(pieces),
        }
    }

    /// Says goodbye, if that is possible at once.
    pub(super) fn say_goodbye(&mut self) {
        if let Self::Tls(tls) = self {
            let mut connection = lock(&tls.connection);
            connection.send_close_notify();
            // Only the goodbye is in it: who wrote before has sent everything.
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

    /// Makes records of the front of `piece`, and of what TLS itself has to say.
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
/// A thread that waits in `poll` is woken by what arrives. One that waits in `recv` is also woken
/// whenever the client has taken something of what others sent, and goes back to sleep.
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
    // Leaves out what is empty.
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

/// Nobody panics while holding the TLS state; if somebody did, the connection fails by itself.
fn lock(connection: &Mutex<ServerConnection>) -> std::sync::MutexGuard<'_, ServerConnection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
