//! The most resident memory that a command ever had.
//!
//! The kernel tells it of all children of a process together, so each command gets a parent of its
//! own: this program again.

use std::{
    env,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// The first argument of the parent.
pub(crate) const WORD: &str = "peak-of";

/// Runs a command that must succeed, and gives its peak in bytes.
pub(crate) fn of(command: &Command) -> anyhow::Result<u64> {
    let mut parent = Command::new(env::current_exe()?);
    parent
        .arg(WORD)
        .arg(command.get_program())
        .args(command.get_args());
    let output = parent.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?} has failed");
    let kib: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(kib * 1024)
}

/// What the parent does: it prints the peak of its child, in KiB.
pub(crate) fn report(words: &[String]) -> ExitCode {
    let peak = || {
        let (program, arguments) = words.split_first().context("no command")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        ensure!(command.status()?.success(), "the command has failed");
        Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss())
    };
    match peak() {
        Ok(kib) => {
            println!("{kib}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
