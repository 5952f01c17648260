//! Runs a program to its end.

use std::{
    env,
    ffi::OsStr,
    io,
    process::{ExitStatus, Stdio},
};

use tokio::process::Command;

use super::{VmError, paths};

/// Runs `command`, which must succeed, and gives what it wrote to standard output.
///
/// # Errors
///
/// [`VmError::Missing`] if there is no such program, [`VmError::Command`] if it fails.
pub(super) async fn run(command: &mut Command) -> Result<String, VmError> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.map_err(|error| not_started(command, error))?;
    check(
        command,
        output.status,
        &String::from_utf8_lossy(&output.stderr),
    )?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, which must succeed, and lets it write where we do: for what takes long.
///
/// # Errors
///
/// As [`run`].
pub(super) async fn run_visibly(command: &mut Command) -> Result<(), VmError> {
    let status = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await;
    let status = status.map_err(|error| not_started(command, error))?;
    check(command, status, "see above")
}

/// Cargo, the same one that runs us, without what it told us about our own package: build scripts
/// look at that, and would think that something had changed.
pub(super) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    cargo.current_dir(paths::repository());
    cargo
}

fn check(command: &Command, status: ExitStatus, words: &str) -> Result<(), VmError> {
    if status.success() {
        return Ok(());
    }
    Err(VmError::Command {
        command: line(command),
        output: format!("{status}: {}", words.trim()),
    })
}

fn not_started(command: &Command, error: io::Error) -> VmError {
    match error.kind() {
        io::ErrorKind::NotFound => VmError::missing(name(command)),
        _ => VmError::io(format!("starting `{}`", line(command)))(error),
    }
}

fn name(command: &Command) -> String {
    command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned()
}

fn line(command: &Command) -> String {
    let words = command.as_std().get_args().map(OsStr::to_string_lossy);
    words.fold(name(command), |line, word| format!("{line} {word}"))
}
