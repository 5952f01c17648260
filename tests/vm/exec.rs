//! Commands in the guest.

use std::fs::File;

use crate::{assert_same_content, finish, in_guest, random_file, shared};

#[tokio::test]
async fn exec_runs_a_command_in_the_guest() {
    let uname = in_guest(shared().await, "uname -a").await;
    assert!(uname.starts_with("Linux demo 6."), "{uname}");
}

#[tokio::test]
async fn exec_returns_the_exit_code() {
    let vm = shared().await;
    let cases: [(&[&str], i32); 4] = [
        (&["sh", "-c", "exit 7"], 7),
        (&["/no/such"], 127),
        (&["/etc/passwd"], 126),
        (&["sh", "-c", "kill -TERM $$"], 143),
    ];
    for (command, code) in cases {
        let output = finish(vm.exec(command)).await;
        assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
    }
}

#[tokio::test]
async fn exec_round_trips_fifty_megabytes_in_a_vm() {
    let vm = shared().await;
    let there = random_file(vm, "cat-there", 50_000_000);
    let back = vm.scratch().join("cat-back");
    let mut cat = vm.exec(["cat"]);
    cat.stdin(File::open(&there).unwrap())
        .stdout(File::create(&back).unwrap());
    let output = finish(cat).await;
    assert!(output.status.success(), "{output:?}");
    assert_same_content(&there, &back);
}
