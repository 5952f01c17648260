//! The commands of the prompt for the host: its directory, umask and shell.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use nix::sys::stat::Mode;

use crate::{
    file_limit,
    output::{self, escape_path},
};

/// Changes the current directory of the process; to the home directory without a path.
pub(super) fn change_directory(path: Option<PathBuf>) -> anyhow::Result<()> {
    let home = || env::home_dir().unwrap_or_else(|| PathBuf::from("/"));
    let path = path.unwrap_or_else(home);
    env::set_current_dir(&path).with_context(|| format!("cannot change to {}", escape_path(&path)))
}

/// The current directory of the process, escaped.
pub(super) fn directory() -> anyhow::Result<String> {
    let directory = env::current_dir().context("cannot find the host's directory")?;
    Ok(escape_path(directory))
}

pub(super) fn make_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot create {}", escape_path(path)))
}

/// Sets the umask if `mask` is given. Returns the current umask.
pub(super) fn umask(mask: Option<u32>) -> anyhow::Result<u32> {
    let Some(mask) = mask else {
        // `umask(2)` returns the umask only when it sets one.
        let mask = nix::sys::stat::umask(Mode::S_IRWXG | Mode::S_IRWXO);
        nix::sys::stat::umask(mask);
        return Ok(mask.bits());
    };
    let mode = Mode::from_bits(mask).context("no such mask")?;
    nix::sys::stat::umask(mode);
    Ok(mask)
}

/// Runs a line in the user's shell, or an interactive shell if it is empty. A failure of the shell is
/// printed.
pub(super) async fn run(line: &[u8]) -> anyhow::Result<()> {
    let shell = env::var_os("SHELL").filter(|shell| !shell.is_empty());
    let shell = shell.unwrap_or_else(|| OsString::from("/bin/sh"));
    let mut command = Command::new(&shell);
    if !line.is_empty() {
        command.arg("-c").arg(OsStr::from_bytes(line));
    }
    let status = tokio::task::spawn_blocking(move || file_limit::status(&mut command)).await?;
    let status = status.with_context(|| format!("cannot run {}", escape_path(shell)))?;
    if !status.success() {
        output::eprint_error(&format!("the shell ended with {status}"));
    }
    Ok(())
}
