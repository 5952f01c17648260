//! `sftp` without `--stdio`: the commands of OpenSSH's `sftp`, interactive or from a batch file.
//!
//! ```text
//! terminal ─► editor ─┐
//!                     ├─► line: words ─► command ─► session ─► guest
//! file, stdin ► input ┘
//! ```

mod command;
mod complete;
mod editor;
mod expand;
mod glob;
mod history;
mod input;
mod line;
mod session;
mod shell;
mod table;
mod transfer;

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use anyhow::Context;
use futures_util::FutureExt;
use vsock_agent_client::Sftp;

use self::{
    command::Command,
    editor::{Editor, Typed},
    input::Lines,
    session::{Next, Session},
};
use super::{interrupt::unless_interrupted, operands::is_over};
use crate::{
    exit, output,
    signals::{self, Signals},
};

/// The batch file that means stdin.
const STDIN: &str = "-";

/// The source of commands: `None` for the terminal.
pub(super) struct Input(Option<Lines>);

impl Input {
    /// The batch file, or stdin for `-`. Without a batch, the terminal if there is one, else stdin.
    pub(super) fn open(batch: Option<&Path>) -> anyhow::Result<Self> {
        let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
        Ok(Self(match batch {
            Some(path) if path != Path::new(STDIN) => Some(Lines::file(path)?),
            None if is_interactive => None,
            _ => Some(Lines::stdin()?),
        }))
    }
}

/// Runs commands until the end of the input, or `exit`.
pub(super) async fn run(sftp: Sftp, input: Input) -> anyhow::Result<u8> {
    let session = Session::start(sftp.clone(), input.0.is_none()).await?;
    let done = match input.0 {
        Some(lines) => {
            let mut signals = Signals::of(&signals::TERMINATION)?;
            unless_interrupted(&mut signals, &[&sftp], batch(session, lines)).await
        }
        None => {
            // Without SIGINT: Ctrl-C ends only the running command.
            let mut signals = Signals::of(&[libc::SIGTERM, libc::SIGHUP])?;
            unless_interrupted(&mut signals, &[&sftp], run_interactive(session)).await
        }
    };
    done.unwrap_or_else(|signal| Ok(exit::after_signal(signal)))
}

/// Prints and runs each line. Stops at the first error, because later lines may depend on it.
async fn batch(mut session: Session, mut lines: Lines) -> anyhow::Result<u8> {
    let mut number = 0_u64;
    while let Some(line) = lines.next().await? {
        number += 1;
        let prefixed = line::prefixed(&line);
        if !prefixed.is_silent {
            output::line(&format!("sftp> {}", output::escape(line.trim_ascii_end())))?;
        }
        match run_line(&mut session, prefixed.text).await {
            Ok(Next::Continue) => {}
            Ok(Next::Quit) => break,
            Err(error) if prefixed.ignores_errors && !is_over(&error) => {
                exit::print_error(&error);
            }
            Err(error) if exit::is_broken_pipe(&error) => return Err(error),
            Err(error) => return Err(error).with_context(|| format!("line {number}")),
        }
    }
    Ok(0)
}

async fn run_line(session: &mut Session, text: &[u8]) -> anyhow::Result<Next> {
    match command::parse(text)? {
        Some(command) => session.run(command).await,
        None => Ok(Next::Continue),
    }
}

/// Runs the lines that the user types. Ctrl-C ends the running command.
async fn run_interactive(mut session: Session) -> anyhow::Result<u8> {
    let numbers = signals::not_ignored(&[libc::SIGINT]);
    let mut editor = Editor::new(session.sftp.clone(), session.directory.clone())?;
    // After the editor, because its signal handler calls the previous one.
    let mut interrupts = Signals::listen(&numbers)?;
    loop {
        let line = match editor.read(&session.directory).await? {
            Typed::Line(line) => line,
            Typed::Cancelled => continue,
            Typed::End => return Ok(0),
        };
        let text = line::prefixed(line.as_bytes()).text;
        match run_interruptible(&mut session, text, &mut interrupts).await {
            Ok(Next::Continue) => {}
            Ok(Next::Quit) => return Ok(0),
            Err(error) if is_over(&error) => return Err(error),
            Err(error) => {
                exit::print_error(&error);
            }
        }
    }
}

async fn run_interruptible(
    session: &mut Session,
    text: &[u8],
    interrupts: &mut Signals,
) -> anyhow::Result<Next> {
    let Some(command) = command::parse(text)? else {
        return Ok(Next::Continue);
    };
    // Discards signals that arrived before the command.
    while interrupts.next().now_or_never().is_some() {}
    if matches!(command, Command::Shell(_)) {
        // The terminal sends the signal to the shell too.
        return session.run(command).await;
    }
    let sftp = session.sftp.clone();
    let done = unless_interrupted(interrupts, &[&sftp], session.run(command)).await;
    done.unwrap_or_else(|_| {
        output::eprint_error("interrupted");
        Ok(Next::Continue)
    })
}
