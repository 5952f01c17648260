//! A client that is gone, at each step of the way. For the agent a client that is killed and one
//! whose sockets are dropped are the same.

use harness::{RawClient, RawExec, eventually};
use serde_json::json;

use crate::{Baseline, PATIENCE, assert_nothing_left, start};

/// How far a client gets before it is gone.
const STEPS: &[&str] = &[
    "posted",
    "one socket",
    "three sockets",
    "running",
    "draining",
];

/// Clients that go at each step.
const EACH: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn vanished_client_leaves_nothing_at_any_step() {
    let (agent, client) = start("vanish").await;
    client.server_info().await.unwrap();
    let raw = RawClient::new(&agent.socket());
    let before = Baseline::of(&agent, &client).await;
    let steps = STEPS
        .iter()
        .flat_map(|step| std::iter::repeat_n(*step, EACH));
    futures_util::future::join_all(steps.map(|step| vanish(&raw, step))).await;
    assert_nothing_left(&agent, &client, &before).await;
}

async fn vanish(raw: &RawClient, step: &str) {
    match step {
        "posted" => drop(raw.post_exec(&["sleep", "1000"], json!({})).await),
        "one socket" => drop(joined(raw, 1).await),
        "three sockets" => drop(joined(raw, 3).await),
        "running" => {
            let script = "sleep 1000 & echo up; sleep 1000";
            let mut exec = raw.exec(&["sh", "-c", script], json!({})).await;
            exec.read_until("1", "up").await;
        }
        "draining" => {
            // The command has ended, and something it started still writes.
            let script = "while :; do echo; sleep 0.1; done & echo $$";
            let mut exec = raw.exec(&["sh", "-c", script], json!({})).await;
            let pid = exec.read_until("1", "\n").await;
            let path = format!("/proc/{}/stat", pid.trim());
            // On a slow machine it may be over before anybody looks.
            let ended =
                async || std::fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z "));
            assert!(eventually(PATIENCE, ended).await);
        }
        _ => panic!("{step}"),
    }
}

/// A command so many of whose sockets are joined.
async fn joined(raw: &RawClient, count: usize) -> Vec<harness::raw::Socket> {
    let reply = raw.post_exec(&["sleep", "1000"], json!({})).await;
    let id = reply.body["metadata"]["id"].as_str().unwrap();
    let fds = reply.body["metadata"]["metadata"]["fds"]
        .as_object()
        .unwrap();
    let mut sockets = Vec::new();
    for secret in fds.values().take(count) {
        let secret = secret.as_str().unwrap();
        let path = RawExec::path(id, secret);
        sockets.push(raw.websocket(&path).await.unwrap());
    }
    sockets
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_survive_an_agent_crash() {
    let (mut agent, _client) = start("crash").await;
    let raw = RawClient::new(&agent.socket());
    let script = "echo $$; exec sleep 1000 >/dev/null 2>&1";
    let mut exec = raw.exec(&["sh", "-c", script], json!({})).await;
    let pid = exec.read_until("1", "\n").await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    agent.kill();
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("the command should go on");
}
