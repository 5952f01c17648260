//! The kinds of command that are hard to get right, through the whole way into a VM; and the same
//! agent driven by a client that shares no code with ours.

use std::time::Duration;

use harness::{
    RawClient, TestVm, eventually,
    kinds::{self, repeat},
    vm::VmOptions,
};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::{client_of, in_guest, shared};

/// Runs of each kind: emulated, one costs some 100 ms.
const RUNS: usize = 20;

/// Commands at once.
const AT_ONCE: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_command_ends_correctly() {
    let vm = shared().await;
    let client = client_of(vm);
    for (_, kind) in kinds::ALL {
        repeat(RUNS, AT_ONCE, |run| kind(client.clone(), run)).await;
    }
    let output = client
        .exec("id", ["-G"])
        .user("user")
        .output()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .count(),
        3
    );
}

#[tokio::test]
async fn independent_client_drives_the_agent() {
    let options = VmOptions {
        plain: true,
        ..VmOptions::new("raw")
    };
    let vm = TestVm::start(options).await.unwrap();
    let client = RawClient::at(&vm.endpoint());
    let info = client.get("/1.0").await.body;
    assert_eq!(
        info["metadata"]["environment"]["server"],
        json!("lxd-agent")
    );

    let mut exec = client
        .exec(&["sh", "-c", "cat; echo err >&2; exit 7"], json!({}))
        .await;
    exec.send(b"hello").await;
    exec.end_input().await;
    assert_eq!(exec.read_all("1").await, b"hello");
    assert_eq!(exec.read_all("2").await, b"err\n");
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["return"], json!(7));
    assert_eq!(end["metadata"]["bytes"], json!({ "0": 5, "1": 5, "2": 4 }));

    let more = json!({ "interactive": true, "width": 100, "height": 30 });
    let mut exec = client.exec(&["stty", "size"], more).await;
    assert_eq!(exec.read_all("0").await, b"30 100\r\n");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_leave_no_processes_or_descriptors() {
    let vm = TestVm::start(VmOptions::new("load")).await.unwrap();
    let client = client_of(&vm);
    repeat(50, 1, |run| kinds::nothing(client.clone(), run)).await;
    let before = rss_kib(&vm).await;
    repeat(200, 1, |run| kinds::nothing(client.clone(), run)).await;
    let growth = rss_kib(&vm).await.saturating_sub(before);
    assert!(growth <= 2048, "the agent has grown by {growth} KiB");

    repeat(30, 30, |run| kinds::echo(client.clone(), run)).await;

    let script = "head -c 20000000 /dev/zero & head -c 20000000 /dev/zero >&2; wait";
    let output = client.exec("sh", ["-c", script]).output().await.unwrap();
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        (20_000_000, 20_000_000)
    );

    // A client that is killed takes all of its command with it.
    let mut cli = vm.exec(["sh", "-c", "sleep 1000 & echo up; sleep 1000"]);
    let mut cli = cli.spawn().unwrap();
    let mut up = [0; 3];
    cli.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut up)
        .await
        .unwrap();
    cli.kill().await.unwrap();
    let gone = async || in_guest(&vm, "pidof sleep || echo none").await == "none\n";
    assert!(eventually(Duration::from_secs(30), gone).await);
}

/// Resident memory of the agent in the guest.
async fn rss_kib(vm: &TestVm) -> u64 {
    let status = in_guest(vm, "grep VmRSS /proc/$(pidof vsock-agent)/status").await;
    status
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}
