//! Debian 12 with systemd and its own cloud-init, unmodified, in a real virtual machine, with
//! `agent-cli serve` on the host: what is set there is what the machine becomes, in one boot.
//!
//! A boot takes most of a minute where the VM is emulated, so each checks many things. The guests'
//! consoles are in `target/lab/log/`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

mod away;
mod data;
mod disc;
mod identity;
mod incus_host;
mod late;
mod lxd;
mod lxd_host;
mod nocloud;

use std::{
    fs::{self, File},
    time::Duration,
};

use harness::{
    TestVm,
    vm::{System, VmOptions},
};
use tokio::{process::Command, time::timeout};

/// Longest that a boot may take: 40 to 60 s under TCG on two cores, and several times as long where
/// something else keeps them busy.
const PATIENCE: Duration = Duration::from_secs(600);

/// Seconds that a boot waits for the host's data: on a busy computer, an emulated guest may need more
/// than the usual ten to fetch them.
const READY_TIMEOUT: u64 = 30;

/// What the agent makes of its data.
#[derive(Clone, Copy)]
enum Source {
    Lxd,
    NoCloud,
}

/// Gives a VM that is off, with the agent set to ask the host from the start.
async fn machine(name: &str, source: Source, looks_like_lxd: bool) -> TestVm {
    let source = match source {
        Source::Lxd => "lxd",
        Source::NoCloud => "nocloud",
    };
    let config = format!(
        "host = \"vsock:2:8444\"\ncloud-init = \"{source}\"\nready-timeout = {READY_TIMEOUT}\n"
    );
    configured(name, config, looks_like_lxd).await
}

/// Gives a VM that is off, with this configuration of the agent.
async fn configured(name: &str, config: String, looks_like_lxd: bool) -> TestVm {
    let options = VmOptions {
        memory_mib: 1024,
        system: Some(System {
            config,
            looks_like_lxd,
            ..System::default()
        }),
        ..VmOptions::new(name)
    };
    TestVm::prepare(options).await.unwrap()
}

/// Sets one of the VM's keys on the host, by a file.
async fn set(vm: &TestVm, key: &str, value: &str) {
    let path = vm.scratch().join("value");
    fs::write(&path, value).unwrap();
    let mut set = vm.cli(["config", "set", vm.name(), key, "-"]);
    set.stdin(File::open(&path).unwrap());
    run(set).await;
}

/// Boots, and waits until there is nothing left to be started. Gives systemd's word for how it went.
async fn boot(vm: &mut TestVm) -> String {
    vm.boot().await.unwrap();
    // It fails if the word is not `running`.
    in_guest(vm, "systemctl is-system-running --wait || true").await
}

async fn power_off(vm: &mut TestVm) {
    // The session may or may not end before the machine does.
    let _ = vm.exec(["systemctl", "poweroff"]).output().await;
    vm.wait_off().await.unwrap();
}

/// Runs a shell script in the guest, which must succeed, and gives what it printed.
async fn in_guest(vm: &TestVm, script: &str) -> String {
    run(vm.exec(["sh", "-c", script])).await.trim().to_owned()
}

async fn run(mut command: Command) -> String {
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.expect("the command ends in time").unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that cloud-init is content with its `sources` in boot `number` of this disk, that systemd
/// had no trouble with the order of units, and that nothing rebooted the machine.
async fn assert_sound(vm: &TestVm, number: u32, sources: &str) {
    let status = in_guest(vm, "cloud-init status --long || true").await;
    assert!(status.starts_with("status: done"), "{status}");
    let list = in_guest(vm, "cat /run/cloud-init/cloud.cfg").await;
    assert_eq!(list, format!("datasource_list: [ {sources} ]"));
    let cycles = "journalctl -b --no-pager | grep -i 'ordering cycle' || true";
    assert_eq!(in_guest(vm, cycles).await, "");
    let boots = in_guest(vm, "last -x reboot | grep -c ^reboot").await;
    assert_eq!(boots, number.to_string(), "boots of this disk");
}

/// Tells whether the agent had cloud-init look again in this boot.
async fn is_kicked(vm: &TestVm) -> bool {
    let kicked = "test -e /run/vsock-agent-cloud-init && echo yes || echo no";
    in_guest(vm, kicked).await == "yes"
}
