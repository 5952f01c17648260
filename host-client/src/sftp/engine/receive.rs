//! Waiting for a socket that another thread writes to.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};

/// Reads what there is, and waits for it if there is nothing; 0 is the end.
///
/// A thread that waits in `poll` is woken by data only. One that waits in `recv` is also woken
/// whenever the other end has read something that the writer sent: in a large push, most of the time.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`] when nothing arrived in time, or those of the connection.
pub(super) fn receive(stream: &UnixStream, out: &mut [u8], silence: Duration) -> io::Result<usize> {
    loop {
        match recv(stream.as_raw_fd(), out, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(stream, silence)?,
            received => return Ok(received?),
        }
    }
}

/// The same until `out` is full.
///
/// # Errors
///
/// Those of [`receive`], and [`io::ErrorKind::UnexpectedEof`].
pub(super) fn receive_exact(
    stream: &UnixStream,
    mut out: &mut [u8],
    silence: Duration,
) -> io::Result<()> {
    while !out.is_empty() {
        match receive(stream, out, silence)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => out = &mut out[count..],
        }
    }
    Ok(())
}

/// Waits until there is something to read, or the end.
fn wait(stream: &UnixStream, silence: Duration) -> io::Result<()> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(silence).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::Shutdown, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_comes_late_and_in_pieces_is_waited_for() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut out = [0; 6];
        thread::scope(|scope| {
            scope.spawn(move || {
                for piece in [b"ab", b"cd", b"ef"] {
                    far.write_all(piece).unwrap();
                    thread::yield_now();
                }
                far.shutdown(Shutdown::Write).unwrap();
            });
            receive_exact(&near, &mut out, LONG).unwrap();
        });
        assert_eq!(&out, b"abcdef");
        assert_eq!(receive(&near, &mut out, LONG).unwrap(), 0);
    }

    #[test]
    fn an_end_within_what_was_to_come_is_told() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"abc").unwrap();
        drop(far);
        let error = receive_exact(&near, &mut [0; 4], LONG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn silence_is_told() {
        let (near, _far) = UnixStream::pair().unwrap();
        let error = receive(&near, &mut [0; 4], Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
