//! Python's paramiko: straight on the upgraded connection.

use harness::{TestAgent, TestFolder};
use tokio::process::Command;

use crate::succeed;

/// Debian's Python, which has Debian's paramiko.
const PYTHON: &str = "/usr/bin/python3";

#[tokio::test]
async fn paramiko_operations_work() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let mut python = Command::new(PYTHON);
    python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/exercise.py"));
    python.arg(agent.socket()).arg(folder.path());
    let printed = succeed(&mut python).await;
    assert_eq!(printed, "done\n");
}
