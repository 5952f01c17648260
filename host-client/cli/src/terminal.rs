//! The local terminal: raw mode during a session with a terminal, and its size.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::termios::tcgetwinsize;
use vsock_agent_client::TerminalSize;

/// The default size of agents.
const DEFAULT_SIZE: TerminalSize = TerminalSize {
    columns: 80,
    lines: 25,
};

/// The settings to restore; `None` if the terminal is not raw.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of the terminal on stdin. Dropping it restores the settings.
#[derive(Debug)]
#[must_use = "the terminal is restored when this is dropped"]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal on stdin raw. Returns `None` if stdin is not a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let original = tcgetattr(stdin.as_fd())?;
        let mut raw = original.clone();
        cfmakeraw(&mut raw);
        // Before the change, so that a panic in between restores them.
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
        // Not TCSADRAIN, which blocks if the output is stopped by Ctrl-S.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &original);
    }
}

/// Installs a panic hook that restores the terminal before it prints the message.
pub(crate) fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// The size of the terminal on stdout, else of that on stdin, else [`DEFAULT_SIZE`].
pub(crate) fn size() -> TerminalSize {
    [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin())]
        .into_iter()
        .flatten()
        .find(|size| size.ws_col > 0 && size.ws_row > 0)
        .map_or(DEFAULT_SIZE, |size| TerminalSize {
            columns: size.ws_col,
            lines: size.ws_row,
        })
}
