//! `agent-cli serve` where it listens on true `AF_VSOCK`: it and the agent it answers are in one guest,
//! over the kernel's loopback. That the two are one machine is the one thing that differs from a host.

use std::time::Duration;

use harness::{TestVm, eventually, vm::VmOptions};

use crate::{
    in_guest,
    probe::{self, Exchange, ask_once},
    running::Running,
};

/// The host's configuration, in the guest.
const HOST: &str = "export AGENT_CLI_CONFIG=/tmp/host/config.toml";

/// Time for a change on the host to be seen: it looks once a second.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the host answers.
const HOST_DOOR: &str = "vsock 1 8444";

/// The agent of the VM `inner`, which asks the host over the loopback, with its things in `folder`.
fn agent(folder: &str, identity: &str) -> String {
    format!(
        "exec vsock-agent --config /dev/null --identity {identity} --cloud-init off --ready-timeout 3
             --host vsock:1:8444 --allow-cid 1 --guest-socket {folder}/sock"
    )
    .replace('\n', " ")
}

/// One answer of the guest API at `socket`.
async fn value(vm: &TestVm, socket: &str) -> Exchange {
    let socket = format!("unix {socket}");
    ask_once(vm, "0", &socket, "GET /1.0/config/user.a").await
}

#[tokio::test]
async fn serve_over_af_vsock_identifies_the_guest() {
    let vm = TestVm::start(VmOptions::new("serve")).await.unwrap();
    probe::install(&vm).await;
    let set_up = format!(
        "{HOST}; mkdir -m 700 /tmp/host /tmp/inner /tmp/other /tmp/elsewhere
         agent-cli identity init inner --dir /tmp/host/identity &&
         agent-cli vm add inner vsock:1:9443 --identity /tmp/host/identity &&
         agent-cli config set inner user.a=eins"
    );
    in_guest(&vm, &set_up).await;
    let mut serve = Running::start(&vm, &format!("{HOST}; exec agent-cli serve"));
    serve.says("serving").await;

    let own = "/tmp/host/identity/inner/guest";
    let start = agent("/tmp/inner", own) + " --listen vsock:any:9443";
    let mut inner = Running::start(&vm, &start);
    inner.says("listening").await;
    let has_data = async || in_guest(&vm, "ls /tmp/inner").await == "sock\n";
    assert!(eventually(CHANGE_TIMEOUT, has_data).await);
    let first = value(&vm, "/tmp/inner/sock").await;
    assert!(first.answer.ends_with("eins"), "{first:?}");

    // The host has connection the agent where it is, by `PUT /1.0`.
    serve.says("the agent has the address of this host").await;

    let stream = probe::at("unix /tmp/inner/sock") + " <<'END'\nGET /1.0/events?type=config\nEND";
    let mut events = Running::start(&vm, &stream);
    events.says("HTTP/1.1 200").await;
    in_guest(
        &vm,
        &format!("{HOST}; agent-cli config set inner user.a=zwei"),
    )
    .await;
    events.says("\"value\":\"zwei\"").await;
    let second = value(&vm, "/tmp/inner/sock").await;
    assert!(second.answer.ends_with("zwei"), "{second:?}");

    // The right machine, without TLS: it is heard out as far as to be connection what is wrong.
    let get = "GET /1.0/config/user.a";
    let plain = ask_once(&vm, "0", HOST_DOOR, get).await;
    assert!(
        plain.answer.starts_with("\\x15\\x03"),
        "an alert: {plain:?}"
    );

    // The right machine, with another certificate.
    let other = "/tmp/other/identity/inner/guest";
    let other_identity = format!(
        "agent-cli identity init inner --dir /tmp/other/identity &&
         cp /tmp/host/identity/client.crt {other}/server.crt"
    );
    in_guest(&vm, &other_identity).await;
    let start = agent("/tmp/other", other) + " --listen unix:/tmp/other/agent";
    let mut other = Running::start(&vm, &start);
    other.says("no instance data in time").await;
    serve.says("refused").await;
    assert_eq!(
        in_guest(&vm, "test -e /tmp/other/sock || echo no").await,
        "no\n"
    );

    // The right certificate, from another machine than it should come from.
    drop(inner);
    let moved = format!(
        "{HOST}; agent-cli vm remove inner &&
         agent-cli vm add inner vsock:77:9443 --identity /tmp/host/identity"
    );
    in_guest(&vm, &moved).await;
    serve.says("vsock:77:9443").await;
    let unknown = ask_once(&vm, "0", HOST_DOOR, get).await;
    assert_eq!(unknown.answer, "", "{unknown:?}");
    let start = agent("/tmp/elsewhere", own) + " --listen unix:/tmp/elsewhere/agent";
    let mut elsewhere = Running::start(&vm, &start);
    elsewhere.says("no instance data in time").await;
    assert_eq!(
        in_guest(&vm, "test -e /tmp/elsewhere/sock || echo no").await,
        "no\n"
    );
}
