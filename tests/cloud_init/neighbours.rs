//! The address of a metadata service belongs to the machine alone: nobody else's is taken, nobody
//! else is let in, and it goes with the agent.

use std::process::Command;

use harness::{MockHost, TestFolder};

use crate::{PRODUCT, data};

const SCRIPT: &str = include_str!("neighbours.sh");

#[test]
fn the_address_is_the_machines_own_and_nobody_elses() {
    let folder = TestFolder::new("neighbours");
    let _host = MockHost::start(&folder.path().join("host.sock"), data("one"));
    let output = Command::new("unshare")
        .args(["-m", "-n", "-p", "--fork", "--kill-child", "timeout", "120"])
        .args(["sh", "-c", SCRIPT, "neighbours"])
        .arg(&PRODUCT.agent)
        .arg(folder.path())
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let log = std::fs::read_to_string(folder.path().join("log"));
    assert!(output.status.success(), "{seen}{errors}{log:?}");
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        [
            "guest asks: one",
            "neighbour asks: Connection refused",
            "address: yes",
            "address afterwards: no",
            "address of a dead agent: yes",
            "guest asks the next: one",
            "address in the end: no",
            "somebody answers",
            "address of another: no",
        ]
    );
}
