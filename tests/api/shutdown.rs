//! One way everything stops.

use harness::{RawClient, TestAgent};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_commands_if_configured_and_removes_the_socket() {
    let mut agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut exec = client
        .exec(&["sh", "-c", "echo $$; exec sleep 1000"], json!({}))
        .await;
    let pid = exec.read_until("1", "\n").await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    agent.stop();
    nix::sys::signal::kill(pid, None).expect_err("the command should be gone");
    assert!(!agent.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_leaves_commands_running_by_default() {
    let mut agent = TestAgent::configured(|config| config.end_commands = false);
    let client = RawClient::new(&agent.socket());
    let script = "echo $$; exec sleep 1000 >/dev/null 2>&1";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    let pid = exec.read_until("1", "\n").await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    agent.stop();
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("the command should go on");
    // An agent of another test may have reaped it: they are one process here.
    let _ = nix::sys::wait::waitpid(pid, None);
}
