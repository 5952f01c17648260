//! What the agent keeps of its memory after a peak.

use std::{fs, time::Duration};

use futures_util::future::join_all;
use harness::{RawClient, TestFolder, eventually};
use serde_json::json;

use super::{Agent, PATIENCE};

/// Commands at once.
const COMMANDS: usize = 200;

/// Least that they make the agent grow by, in KiB: less would show nothing.
const PEAK: u64 = 18 * 1024;

/// Most that is left of it, in KiB: for less than 8 MiB the agent does not try.
const LEFT: u64 = 12 * 1024;

/// Time for it: the commands end, and the agent looks at its size every ten seconds.
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

impl Agent {
    /// Resident memory in KiB (`proc_pid_status(5)`).
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }
}

#[tokio::test]
async fn memory_is_returned_after_a_peak() {
    let folder = TestFolder::new("memory");
    let agent = Agent::start(folder, &["env"], &["--plain", "--log", "debug"]).await;
    let client = RawClient::new(&agent.socket());
    let before = agent.memory();
    // More output than the streams hold, which nobody reads.
    let words = ["sh", "-c", "head -c 4000000 /dev/zero; exec cat"];
    let commands = join_all((0..COMMANDS).map(|_| client.exec(&words, json!({})))).await;
    // That it has tried during the peak is no reason not to try after it.
    let tries = || agent.log().matches("freed memory is given back").count();
    let first = tries();
    assert!(eventually(PATIENCE, async || tries() > first).await);
    let peak = agent.memory();
    assert!(peak > before + PEAK, "{before} KiB, at the peak {peak} KiB");
    drop(commands);
    let is_back = eventually(RETURN_TIMEOUT, async || agent.memory() < before + LEFT).await;
    let after = agent.memory();
    assert!(
        is_back,
        "{before} KiB before, {peak} at the peak, {after} after"
    );
}
