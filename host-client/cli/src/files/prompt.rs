//! `sftp` without `--stdio`: commands as OpenSSH's `sftp` has them, from a person or from a batch.
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

/// The word for stdin.
const STDIN: &str = "-";

/// Where commands come from.
#[derive(Debug)]
pub(super) struct Input(Option<Lines>);

impl Input {
    /// A batch: a file, or stdin. Without one it is the person at the terminal, and without a
    /// terminal it is stdin all the same.
    pub(super) fn open(batch: Option<&Path>) -> anyhow::Result<Self> {
        let is_person = io::stdin().is_terminal() && io::stdout().is_terminal();
        Ok(Self(match batch {
            Some(path) if path != Path::new(STDIN) => Some(Lines::file(path)?),
            None if is_person => None,
            _ => Some(Lines::stdin()?),
        }))
    }
}

/// Does the commands, to the end of the input or until one says so.
pub(super) async fn run(sftp: Sftp, input: Input) -> anyhow::Result<u8> {
    let session = Session::start(sftp.clone(), input.0.is_none()).await?;
    let done = match input.0 {
        Some(lines) => {
            let mut signals = Signals::of(&signals::ENDING)?;
            unless_interrupted(&mut signals, &[&sftp], batch(session, lines)).await
        }
        None => {
            // Ctrl-C ends a command only.
            let mut signals = Signals::of(&[libc::SIGTERM, libc::SIGHUP])?;
            unless_interrupted(&mut signals, &[&sftp], converse(session)).await
        }
    };
    done.unwrap_or_else(|signal| Ok(exit::after_signal(signal)))
}

/// Shows each line and does it. The first that fails is the last, so that nothing is done that
/// counts on it.
async fn batch(mut session: Session, mut lines: Lines) -> anyhow::Result<u8> {
    let mut number = 0_u64;
    while let Some(line) = lines.next().await? {
        number += 1;
        let prefixed = line::prefixed(&line);
        if !prefixed.is_silent {
            output::line(&format!("sftp> {}", output::escape(line.trim_ascii_end())))?;
        }
        match obey(&mut session, prefixed.text).await {
            Ok(Next::Go) => {}
            Ok(Next::Leave) => break,
            Err(error) if prefixed.ignores_errors && !is_over(&error) => {
                exit::tell(&error);
            }
            Err(error) if exit::is_broken_pipe(&error) => return Err(error),
            Err(error) => return Err(error).with_context(|| format!("line {number}")),
        }
    }
    Ok(0)
}

async fn obey(session: &mut Session, text: &[u8]) -> anyhow::Result<Next> {
    match command::parse(text)? {
        Some(command) => session.obey(command).await,
        None => Ok(Next::Go),
    }
}

/// Reads what a person types. A command can be left with Ctrl-C.
async fn converse(mut session: Session) -> anyhow::Result<u8> {
    let heard = signals::not_ignored(&[libc::SIGINT]);
    let mut editor = Editor::new(session.sftp.clone(), session.directory.clone())?;
    // After the editor, which takes the signal for itself but hands on what comes before it.
    let mut interrupts = Signals::listen(&heard)?;
    loop {
        let line = match editor.read(&session.directory).await? {
            Typed::Line(line) => line,
            Typed::Nothing => continue,
            Typed::End => return Ok(0),
        };
        let text = line::prefixed(line.as_bytes()).text;
        match attend(&mut session, text, &mut interrupts).await {
            Ok(Next::Go) => {}
            Ok(Next::Leave) => return Ok(0),
            Err(error) if is_over(&error) => return Err(error),
            Err(error) => {
                exit::tell(&error);
            }
        }
    }
}

async fn attend(
    session: &mut Session,
    text: &[u8],
    interrupts: &mut Signals,
) -> anyhow::Result<Next> {
    let Some(command) = command::parse(text)? else {
        return Ok(Next::Go);
    };
    // What was pressed before is not meant for this one.
    while interrupts.next().now_or_never().is_some() {}
    if matches!(command, Command::Shell(_)) {
        // It is the other program's, too.
        return session.obey(command).await;
    }
    let sftp = session.sftp.clone();
    let done = unless_interrupted(interrupts, &[&sftp], session.obey(command)).await;
    done.unwrap_or_else(|_| {
        output::complain("interrupted");
        Ok(Next::Go)
    })
}
