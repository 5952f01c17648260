//! What the agent costs: told, and limited where the limit does not depend on the machine.

use std::io::{Write as _, stderr};

use crate::in_guest;
use harness::{
    TestVm,
    vm::{Lab, VmOptions},
};

/// Largest agent: it is copied into every guest. HTTP/2 is 0.65 MB of it.
const MAX_AGENT_BYTES: u64 = 6_200_000;

#[tokio::test]
async fn static_agent_size_is_within_its_limit() {
    // The release profile has it stripped.
    let bytes = Lab::prepare()
        .await
        .unwrap()
        .product
        .agent
        .metadata()
        .unwrap()
        .len();
    tell(&format!("static agent: {bytes} bytes"));
    assert!(bytes <= MAX_AGENT_BYTES, "{bytes} bytes");
}

#[tokio::test]
async fn idle_memory_is_printed() {
    let vm = TestVm::start(VmOptions::new("idle")).await.unwrap();
    let status = in_guest(&vm, "cat /proc/$(pidof vsock-agent)/status").await;
    let rss = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    tell(&format!("idle agent in the VM: {rss}"));
}

/// Prints even though the test passes: the test runner holds back what `println!` says.
fn tell(text: &str) {
    stderr()
        .write_all(format!("\n{text}\n").as_bytes())
        .unwrap();
}
