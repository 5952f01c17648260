//! What the prompt does on the host: its directory, its umask, its shell.

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

use crate::{file_limit, output};

fn shown(path: &Path) -> String {
    output::escape(path.as_os_str().as_bytes())
}

/// Goes to a directory: the whole process does.
pub(super) fn enter(path: &Path) -> anyhow::Result<()> {
    env::set_current_dir(path).with_context(|| format!("cannot go to {}", shown(path)))
}

/// The user's home.
pub(super) fn home() -> PathBuf {
    env::home_dir().unwrap_or_else(|| PathBuf::from("/"))
}

/// Where we are, for a person.
pub(super) fn directory() -> anyhow::Result<String> {
    let directory = env::current_dir().context("cannot find the host's directory")?;
    Ok(shown(&directory))
}

/// Creates a directory.
pub(super) fn make_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot create {}", shown(path)))
}

/// Sets the umask, if one is given. Returns the current one.
pub(super) fn umask(mask: Option<u32>) -> anyhow::Result<u32> {
    let Some(mask) = mask else {
        // It can be read only by setting another one.
        let mask = nix::sys::stat::umask(Mode::S_IRWXG | Mode::S_IRWXO);
        nix::sys::stat::umask(mask);
        return Ok(mask.bits());
    };
    let mode = Mode::from_bits(mask).context("no such mask")?;
    nix::sys::stat::umask(mode);
    Ok(mask)
}

/// Runs a line in the user's shell, or the shell itself. How it ends is no failure of ours.
pub(super) async fn run(line: &[u8]) -> anyhow::Result<()> {
    let shell = env::var_os("SHELL").filter(|shell| !shell.is_empty());
    let shell = shell.unwrap_or_else(|| OsString::from("/bin/sh"));
    let mut command = Command::new(&shell);
    if !line.is_empty() {
        command.arg("-c").arg(OsStr::from_bytes(line));
    }
    let status = tokio::task::spawn_blocking(move || file_limit::status(&mut command)).await?;
    let status = status.with_context(|| format!("cannot run {}", shown(Path::new(&shell))))?;
    if !status.success() {
        output::eprint_error(&format!("the shell ended with {status}"));
    }
    Ok(())
}
