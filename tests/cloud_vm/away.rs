//! Nobody answers on the host: the guest boots all the same.

use std::time::Duration;

use harness::{TestVm, eventually, vm::Serve};

use crate::{
    READY_TIMEOUT, Source, assert_sound, boot,
    data::{assert_applied, give},
    in_guest, is_kicked, machine, power_off,
};

/// Seconds that the agent may hold the boot up at most: what it waits for its data, and the time that
/// an emulated processor takes to start a program.
const LONGEST_WAIT: u64 = READY_TIMEOUT + 30;

/// Seconds that the agent held up the boot.
async fn waited(vm: &TestVm) -> u64 {
    let microseconds = async |property: &str| -> u64 {
        let show = format!("systemctl show --value -p {property} vsock-agent.service");
        in_guest(vm, &show).await.parse().unwrap()
    };
    let started = microseconds("ExecMainStartTimestampMonotonic").await;
    let ready = microseconds("ActiveEnterTimestampMonotonic").await;
    (ready - started) / 1_000_000
}

/// Checks that the agent logged `message` in this boot.
async fn assert_logged(vm: &TestVm, message: &str) {
    let log = in_guest(vm, "journalctl -b --no-pager -u vsock-agent").await;
    assert!(log.contains(message), "{log}");
}

/// Starts the host's side, and waits until the guest has its data.
async fn host_comes_back(vm: &TestVm) -> Serve {
    let host = vm.serve().unwrap();
    let has_socket = async || {
        let test = "test -S /dev/lxd/sock && echo yes || echo no";
        in_guest(vm, test).await == "yes"
    };
    assert!(eventually(Duration::from_secs(60), has_socket).await);
    host
}

#[tokio::test]
async fn first_boot_continues_without_its_host() {
    let mut vm = machine("away", Source::Lxd, false).await;
    give(&vm, "erste").await;
    assert_eq!(boot(&mut vm).await, "running");
    let waited = waited(&vm).await;
    let bounds = READY_TIMEOUT - 1..LONGEST_WAIT;
    assert!(bounds.contains(&waited), "it waited {waited} s");
    assert_logged(&vm, "no instance data in time").await;

    // Too late for this boot, whose cloud-init was never to run; early enough for the next.
    let _host = host_comes_back(&vm).await;
    assert!(!is_kicked(&vm).await);
    power_off(&mut vm).await;
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 2, "LXD, None").await;
    assert_applied(&vm, &["erste"]).await;
}

#[tokio::test]
async fn later_boot_uses_cached_data_without_its_host() {
    let mut vm = machine("away-later", Source::Lxd, true).await;
    give(&vm, "erste").await;
    let host = vm.serve().unwrap();
    assert_eq!(boot(&mut vm).await, "running");
    assert_applied(&vm, &["erste"]).await;

    power_off(&mut vm).await;
    drop(host);
    // The saved data is served before cloud-init looks for it.
    assert_eq!(boot(&mut vm).await, "running");
    let failed = in_guest(&vm, "systemctl list-units --failed --plain --no-legend").await;
    assert_eq!(failed, "");
    let waited = waited(&vm).await;
    assert!(waited < LONGEST_WAIT, "it waited {waited} s");
    assert_logged(&vm, "using the instance data of an earlier boot").await;
    assert_applied(&vm, &["erste"]).await;
    let _host = host_comes_back(&vm).await;
}
