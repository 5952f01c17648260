//! The kinds of command that are hard to get right, through the whole way into a VM; and the same
//! agent driven by a client that shares no code with ours.

use harness::{
    RawClient, TestVm,
    kinds::{self, repeat},
    vm::VmOptions,
};
use serde_json::json;
use vsock_agent_client::{Client, Identity, Security};

use crate::{client_files, shared};

/// Runs of each kind: emulated, one costs some 100 ms.
const RUNS: usize = 20;

/// Commands at once.
const AT_ONCE: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_command_ends_as_it_should() {
    let vm = shared().await;
    let [certificate, key, agent] = client_files(vm.identity().unwrap(), vm).map(|(_, path)| path);
    let identity = Identity::from_files(&certificate, &key, &agent).unwrap();
    let client = Client::new(vm.endpoint().parse().unwrap(), Security::Tls(identity));
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
async fn a_client_that_is_not_ours_drives_the_agent() {
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
    assert_eq!(end["metadata"]["bytes"], json!({ "1": 5, "2": 4 }));

    let more = json!({ "interactive": true, "width": 100, "height": 30 });
    let mut exec = client.exec(&["stty", "size"], more).await;
    assert_eq!(exec.read_all("0").await, b"30 100\r\n");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
}
