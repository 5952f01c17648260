//! A pseudo-terminal: the master side as an async byte stream.
//!
//! Both descriptors are close-on-exec from the start. [`super::child`] starts the command.

#![allow(
    unsafe_code,
    reason = "tokio and ioctl ask for unsafe to use a raw descriptor"
)]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    pty::{posix_openpt, unlockpt},
    sys::termios::{self, InputFlags, SetArg},
    unistd,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Size of a terminal, in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TermSize {
    /// Number of lines.
    pub(crate) rows: u16,
    /// Number of characters in a line.
    pub(crate) cols: u16,
}

impl From<TermSize> for libc::winsize {
    fn from(size: TermSize) -> Self {
        Self {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        }
    }
}

/// The master side of a pseudo-terminal. Dropping it hangs up the terminal.
#[derive(Debug)]
pub(crate) struct Pty(AsyncFd<OwnedFd>);

impl Pty {
    /// Opens a pseudo-terminal. Returns the master and the command's side, which `uid` owns and which
    /// has UTF-8 line editing.
    ///
    /// # Errors
    ///
    /// If there is no free terminal or no `/dev/pts`.
    pub(crate) fn open(size: TermSize, uid: u32) -> io::Result<(Self, OwnedFd)> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags)?;
        unlockpt(&master)?;
        let master = OwnedFd::from(master);
        resize(&master, size)?;
        let peer = open_peer(&master)?;
        // The group stays what devpts gave it, `tty` where that is configured.
        unistd::fchown(&peer, Some(uid.into()), None)?;
        let mut settings = termios::tcgetattr(&peer)?;
        settings.input_flags |= InputFlags::IUTF8;
        termios::tcsetattr(&peer, SetArg::TCSANOW, &settings)?;
        // SAFETY: an `OwnedFd` keeps one descriptor open for as long as it lives.
        let stream = unsafe {
            AsyncFd::register_with_interest(master, Interest::READABLE.add(Interest::WRITABLE))
        }?;
        Ok((Self(stream), peer))
    }

    /// Waits for data or end of file. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }

    /// Reads without blocking. Zero means that all other holders have closed the terminal.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no data yet. `EIO`, which Linux returns once the last writer has closed
    /// it, is reported as end of file.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd| match unistd::read(fd, buffer) {
            Err(Errno::EIO) => Ok(0),
            other => Ok(other?),
        };
        self.0.try_io(Interest::READABLE, read)
    }

    /// Writes terminal input.
    ///
    /// # Errors
    ///
    /// `EIO` if all other holders have closed the terminal.
    pub(crate) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(result) = ready.try_io(|fd| Ok(unistd::write(fd, data)?)) {
                data = &data[result?..];
            }
        }
        Ok(())
    }

    /// Sets the window size (`SIGWINCH` for the foreground process group).
    ///
    /// # Errors
    ///
    /// If the terminal is closed.
    pub(crate) fn resize(&self, size: TermSize) -> io::Result<()> {
        resize(self.0.get_ref(), size)
    }
}

fn resize(master: &OwnedFd, size: TermSize) -> io::Result<()> {
    let size = libc::winsize::from(size);
    // SAFETY: `TIOCSWINSZ` reads a `winsize` (`ioctl_tty(2)`), and `size` outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Opens the command's side by its master, which needs no path and is close-on-exec from the start.
fn open_peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: `TIOCGPTPEER` takes flags by value and touches no memory (`ioctl_tty(2)`).
    let raw: RawFd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    Errno::result(raw)?;
    // SAFETY: the kernel has just created this descriptor; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: TermSize = TermSize { rows: 24, cols: 80 };

    #[tokio::test]
    async fn a_terminal_without_other_holders_reads_as_end_of_file() {
        let (pty, peer) = Pty::open(SIZE, unistd::getuid().as_raw()).unwrap();
        drop(peer);
        pty.readable().await.unwrap();
        assert_eq!(pty.try_read(&mut [0; 16]).unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_written_to_the_peer_is_read_with_utf8_editing_on() {
        let (pty, peer) = Pty::open(SIZE, unistd::getuid().as_raw()).unwrap();
        assert!(
            termios::tcgetattr(&peer)
                .unwrap()
                .input_flags
                .contains(InputFlags::IUTF8)
        );
        unistd::write(&peer, b"hello").unwrap();
        let mut buffer = [0; 16];
        pty.readable().await.unwrap();
        assert_eq!(pty.try_read(&mut buffer).unwrap(), 5);
        assert_eq!(&buffer[..5], b"hello");
    }
}
