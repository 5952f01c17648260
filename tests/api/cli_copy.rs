//! `agent-cli push` and `pull`, the real binary: what it says, what it leaves, and what becomes of
//! a copy whose client or agent is killed.

mod descriptors;
mod gate;
mod interrupt;
mod killed;
mod leftovers;
mod limits;
mod names;
mod report;
mod streams;
mod twice;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use harness::{Random, eventually};
use serde_json::Value;

use crate::cli_files::stdout;

/// Longest wait for something that takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

const MIB: u64 = 1024 * 1024;

/// Bytes that differ from those of another `seed`.
fn content(seed: u64, bytes: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut content = Vec::new();
    while u64::try_from(content.len()).unwrap() < bytes {
        content.extend_from_slice(&random.number().to_le_bytes()[..7]);
    }
    content.truncate(usize::try_from(bytes).unwrap());
    content
}

/// The lines of `--json`.
fn events(output: &Output) -> Vec<Value> {
    stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Where a file was continued, as `--json` tells it.
fn resumed_at(output: &Output) -> u64 {
    let started = events(output)
        .into_iter()
        .find(|event| event["event"] == "started");
    started.expect("a start")["resumed_at"].as_u64().unwrap()
}

/// The same command, by a shell that does something before it becomes it.
fn after(script: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{script}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Starts a command whose words are kept.
fn spawn(mut command: Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the end of a command that says little.
async fn finish(mut child: Child) -> Output {
    let ended = eventually(PATIENCE, async || child.try_wait().unwrap().is_some()).await;
    assert!(ended, "it does not end");
    child.wait_with_output().unwrap()
}

/// Waits until what is unfinished in a folder has at least so many bytes.
async fn part_of(folder: &Path, bytes: u64) {
    let has = async || part_bytes(folder).is_some_and(|length| length >= bytes);
    assert!(
        eventually(PATIENCE, has).await,
        "{bytes} bytes are not there: {:?}",
        part_bytes(folder)
    );
}

fn part_bytes(folder: &Path) -> Option<u64> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut parts =
        entries.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".part"));
    Some(parts.next()?.metadata().ok()?.len())
}
