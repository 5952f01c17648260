//! What a client sees when the other end comes and goes. Each test has a VM of its own.

use std::process::Stdio;

use harness::{TestVm, vm::VmOptions};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::{OUR_FAULT, finish, in_guest};

#[tokio::test]
async fn exec_waits_for_a_booting_vm() {
    let mut vm = TestVm::prepare(VmOptions::new("late")).await.unwrap();
    let early = vm.exec(["hostname"]);
    let (output, boot) = tokio::join!(finish(early), vm.boot());
    boot.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"demo\n");
}

#[tokio::test]
async fn killed_agent_is_restarted_and_its_sessions_end() {
    let vm = TestVm::start(VmOptions::new("killed")).await.unwrap();
    let first = in_guest(&vm, "pidof vsock-agent").await;
    // The command kills what runs it.
    let output = finish(vm.exec(["kill", "-9", first.trim()])).await;
    assert_eq!(output.status.code(), OUR_FAULT, "{output:?}");
    assert!(!output.stderr.is_empty());
    assert_ne!(in_guest(&vm, "pidof vsock-agent").await, first);
}

#[tokio::test]
async fn guest_powers_off() {
    let mut vm = TestVm::start(VmOptions::new("off")).await.unwrap();
    // The session may or may not end before the machine does.
    let _ = finish(vm.exec(["poweroff"])).await;
    vm.wait_off().await.unwrap();
}

#[tokio::test]
async fn session_survives_a_vm_pause() {
    let vm = TestVm::start(VmOptions::new("paused")).await.unwrap();
    let mut cat = vm.exec(["cat"]);
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = cat.stdin.take().unwrap();
    let mut stdout = BufReader::new(cat.stdout.take().unwrap()).lines();
    stdin.write_all(b"before\n").await.unwrap();
    assert_eq!(stdout.next_line().await.unwrap().unwrap(), "before");

    vm.pause().unwrap();
    stdin.write_all(b"during\n").await.unwrap();
    vm.resume().unwrap();
    assert_eq!(stdout.next_line().await.unwrap().unwrap(), "during");
    drop(stdin);
    assert!(cat.wait().await.unwrap().success());
}
