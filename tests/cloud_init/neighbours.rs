//! The address of a metadata service belongs to the machine alone: nobody else's is taken, nobody
//! else is let in, and it goes with the agent. Its port is the guest's.

use std::{path::Path, process::Command};

use harness::{HostData, MockHost, TestFolder};

use crate::{PRODUCT, data};

const SCRIPT: &str = include_str!("neighbours.sh");

const PORTS: &str = include_str!("ports.sh");

/// What a script prints that is run as root of namespaces of its own, with the agent, a folder with
/// the socket of a host that has these data, and more paths.
pub(crate) fn seen(script: &str, data: HostData, more: &[&Path]) -> Vec<String> {
    let folder = TestFolder::new("neighbours");
    let _host = MockHost::start(&folder.path().join("host.sock"), data);
    let output = Command::new("unshare")
        .args(["-m", "-n", "-p", "--fork", "--kill-child", "timeout", "120"])
        .args(["sh", "-c", script, "neighbours"])
        .arg(&PRODUCT.agent)
        .arg(folder.path())
        .args(more)
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let log = std::fs::read_to_string(folder.path().join("log"));
    assert!(output.status.success(), "{seen}{errors}{log:?}");
    seen.lines().map(str::to_owned).collect()
}

#[test]
fn guest_can_bind_the_metadata_port() {
    assert_eq!(
        seen(PORTS, data("one"), &[]),
        [
            "left to other programs: yes",
            "server on 0.0.0.0: hello, metadata: one",
            "server on ::: hello, metadata: one",
            "without bpf, a server is first: not served",
            "the server has gone: one",
            "left to other programs: no",
        ]
    );
}

#[test]
fn metadata_address_is_not_reachable_from_the_network() {
    assert_eq!(
        seen(SCRIPT, data("one"), &[]),
        [
            "guest asks: one",
            "neighbour asks: Connection refused",
            "address: yes",
            "address afterwards: no",
            "address of a dead agent: yes",
            "guest asks the next: one",
            "address in the end: no",
            "is in use by another machine",
            "address of another: no",
        ]
    );
}
