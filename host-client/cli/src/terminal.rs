//! The user's terminal: raw while a guest's terminal is shown in it, and always restored.

use std::{
    io::{self, IsTerminal},
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, PoisonError},
};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use vsock_agent_client::TerminalSize;

/// The size that agents use when none is sent.
const DEFAULT_SIZE: TerminalSize = TerminalSize {
    columns: 80,
    lines: 25,
};

/// How the terminal was before it was made raw; `None` when it is as it was.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal. Dropping it restores the terminal.
#[derive(Debug)]
#[must_use = "the terminal is restored when this is dropped"]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal on stdin raw. Without one there is nothing to do.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let original = tcgetattr(stdin.as_fd())?;
        let mut raw = original.clone();
        cfmakeraw(&mut raw);
        // First remembered, then changed: whatever happens between can be undone.
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
        let guard = Self(());
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let original = ORIGINAL
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(original) = original {
        // Not TCSADRAIN, which waits for ever on a terminal that was stopped with Ctrl-S.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &original);
    }
}

/// Restores the terminal before a panic prints its message, in whatever thread it happens.
pub(crate) fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

nix::ioctl_read_bad!(
    /// Reads the size of a terminal (`tty_ioctl(4)`).
    read_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// The size of the user's terminal; the usual one if there is no terminal.
pub(crate) fn size() -> TerminalSize {
    let (stdout, stdin) = (io::stdout(), io::stdin());
    [stdout.as_fd(), stdin.as_fd()]
        .into_iter()
        .find_map(|fd| {
            let mut size = libc::winsize {
                ws_row: 0,
                ws_col: 0,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            #[expect(
                unsafe_code,
                reason = "no dependency has a safe wrapper for TIOCGWINSZ"
            )]
            // SAFETY: the descriptor is open for as long as `fd` is borrowed, and the kernel
            // writes one `winsize`, for which the memory is there.
            let answer = unsafe { read_size(fd.as_raw_fd(), &raw mut size) };
            (answer.is_ok() && size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize {
                columns: size.ws_col,
                lines: size.ws_row,
            })
        })
        .unwrap_or(DEFAULT_SIZE)
}
