//! Starts the process: this program again, in a session of its own, without the caller's terminal, working
//! directory, environment and descriptors.

#![allow(unsafe_code, reason = "close_range(2) takes numbers of descriptors")]

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};
use tracing::debug;

use super::{persist::Persist, place::Place};
use crate::output;

/// What the process writes when it listens.
pub(super) const LISTENING: &str = "listening";

/// What it writes if another process listens.
pub(super) const RUNNING: &str = "running";

/// `agent-cli mux start`: returns when the process listens.
pub(super) fn wait(place: &Place, persist: Persist) -> anyhow::Result<u8> {
    if place.connect().with_context(|| place.unusable())?.is_none() {
        let mut child = spawn(place, persist, Stdio::piped())?;
        let mut told = String::new();
        if let Some(mut output) = child.stdout.take() {
            output.read_to_string(&mut told)?;
        }
        match told.trim_end() {
            LISTENING => return Ok(0),
            RUNNING => {}
            reason => bail!("the process in the background did not start: {reason}"),
        }
    }
    output::line("running already")?;
    Ok(0)
}

/// Starts the process, and does not wait until it listens.
pub(super) fn start(place: &Place, persist: Persist) {
    if let Err(error) = spawn(place, persist, Stdio::null()) {
        debug!(
            error = format!("{error:#}"),
            "cannot start the process in the background"
        );
    }
}

fn spawn(place: &Place, persist: Persist, output: Stdio) -> anyhow::Result<Child> {
    keep_descriptors();
    // Also if the file was replaced meanwhile.
    Command::new("/proc/self/exe")
        .arg0("agent-cli")
        .args(["mux", "run", "--persist", &persist.to_string()])
        .env_clear()
        .env("XDG_RUNTIME_DIR", place.runtime())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a process")
}

/// Marks all descriptors but the standard streams as closed on exec: the process must not keep open what this
/// one was given. Fails before Linux 5.11, where they are kept.
fn keep_descriptors() {
    let (first, last, flag) = (3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: it changes a flag of descriptors, and this process executes no other program with them.
    let marked = unsafe { libc::syscall(libc::SYS_close_range, first, last, flag) };
    if marked != 0 {
        debug!(error = %io::Error::last_os_error(), "descriptors are inherited");
    }
}
