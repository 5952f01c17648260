//! What cloud-init finds in the guest's file system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use harness::{HostData, TestAgent};
use serde_json::json;
use vsock_agent::{CloudInit, Config};

use super::{configured, host_of, put, until};

fn start(cloud_init: CloudInit) -> TestAgent {
    configured(|config| {
        fs::create_dir(&config.root).unwrap();
        config.guest.cloud_init = cloud_init;
    })
}

fn seed(agent: &TestAgent) -> PathBuf {
    agent.folder().join("root/var/lib/cloud/seed/nocloud")
}

#[tokio::test]
async fn seeds_are_written_before_ready_and_follow_the_host() {
    let mut agent = start(CloudInit::NoCloud);
    let host = host_of(
        &agent,
        HostData::with(&[
            ("cloud-init.user-data", "#cloud-config\nhostname: ä\n"),
            ("user.user-data", "old"),
            ("user.network-config", "version: 2\n"),
        ]),
    );
    agent.ready().await;
    let read = |name: &str| fs::read_to_string(seed(&agent).join(name));
    let meta_data = "instance-id: one\nlocal-hostname: guest\n";
    assert_eq!(read("meta-data").unwrap(), meta_data);
    assert_eq!(read("user-data").unwrap(), "#cloud-config\nhostname: ä\n");
    assert_eq!(read("network-config").unwrap(), "version: 2\n");
    read("vendor-data").unwrap_err();
    host.change(|data| drop(data.config.remove("user.network-config")));
    put(&agent, "", true).await;
    until(async || read("network-config").is_err()).await;
    assert_eq!(read("meta-data").unwrap(), meta_data);
}

#[tokio::test]
async fn seed_is_written_only_if_configured() {
    let mut agent = start(CloudInit::Lxd);
    let _host = host_of(&agent, HostData::default());
    agent.ready().await;
    assert!(agent.guest_socket().exists());
    assert!(!seed(&agent).exists());
}

/// A guest in its boot in which cloud-init has found nothing.
fn booting(root: &Path) {
    for folder in ["run/systemd/system", "etc/cloud", "run/cloud-init"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("run/cloud-init/disabled"), "").unwrap();
    program(root, "usr/lib/cloud-init/ds-identify", "exit 1");
    let generator = "usr/lib/systemd/system-generators/cloud-init-generator";
    program(root, generator, "exit 1");
    let script = format!(
        "echo \"$*\" >> {}\n[ \"$2\" != --property=SystemState ] || echo SystemState=starting",
        root.join("log").display()
    );
    program(root, "usr/bin/systemctl", &script);
}

/// Cloud-init was made to look again, once.
#[track_caller]
fn looked_again(agent: &TestAgent) {
    let root = agent.folder().join("root");
    assert!(!root.join("run/cloud-init").exists());
    let log = fs::read_to_string(root.join("log")).unwrap();
    let done: Vec<_> = log.lines().skip(2).collect();
    assert_eq!(
        json!(done),
        json!(["daemon-reload", "--no-block start cloud-init.target"])
    );
}

#[tokio::test]
async fn datasource_is_redetected_before_ready() {
    let mut agent = configured(|config| {
        config.guest.sockets = vec![config.root.join("dev/lxd/sock")];
        booting(&config.root);
    });
    let _host = host_of(&agent, HostData::default());
    agent.ready().await;
    looked_again(&agent);
}

/// A guest in its boot whose cloud-init has begun without the data.
fn late(config: &mut Config) {
    booting(&config.root);
    fs::write(config.root.join("run/cloud-init/status.json"), "").unwrap();
    fs::create_dir_all(config.root.join("proc/self")).unwrap();
    fs::write(config.root.join("proc/uptime"), "12.34 5.67\n").unwrap();
    let mounts = "/dev/vda1 / ext4 rw 0 0\n";
    fs::write(config.root.join("proc/self/mounts"), mounts).unwrap();
    config.guest.cloud_init = CloudInit::NoCloud;
    config.guest.cloud_init_reboot = true;
}

fn is_rebooting(agent: &TestAgent) -> bool {
    let log = fs::read_to_string(agent.folder().join("root/log"));
    log.is_ok_and(|log| log.contains("--no-block reboot\n"))
}

#[tokio::test]
async fn cloud_init_reboot_reboots_for_new_data() {
    let agent = configured(late);
    let _host = host_of(&agent, HostData::default());
    until(async || is_rebooting(&agent)).await;
    let log = "root/var/lib/vsock-agent/cloud-init-reboots";
    let log = fs::read_to_string(agent.folder().join(log)).unwrap();
    assert_eq!(log, "reboot \"one\"\n");
}

#[tokio::test]
async fn cloud_init_reboot_reboots_for_a_share_seed() {
    let agent = TestAgent::configured(|config| {
        late(config);
        share_a_seed(config, true);
    });
    until(async || is_rebooting(&agent)).await;
}

#[tokio::test]
async fn no_reboot_without_cloud_init_reboot() {
    let mut agent = configured(|config| {
        late(config);
        config.guest.cloud_init_reboot = false;
    });
    let _host = host_of(&agent, HostData::default());
    agent.ready().await;
    assert!(!is_rebooting(&agent));
}

#[tokio::test]
async fn no_reboot_after_ready() {
    let mut agent = configured(|config| {
        late(config);
        config.guest.ready_timeout = Some(Duration::ZERO);
    });
    agent.ready().await;
    let host = host_of(&agent, HostData::default());
    until(async || seed(&agent).exists()).await;
    // The next seed is written when cloud-init has been seen to for the first one.
    host.change(|data| data.meta_data = "instance-id: two\n".to_owned());
    put(&agent, "", true).await;
    let meta_data = || fs::read_to_string(seed(&agent).join("meta-data"));
    until(async || meta_data().is_ok_and(|text| text.contains("two"))).await;
    assert!(!is_rebooting(&agent));
}

/// A config share with a template for a seed, rendered in this boot or in an earlier one.
fn share_a_seed(config: &Config, is_rendered: bool) {
    let files = config.share.as_ref().unwrap().folder.join("files");
    fs::create_dir_all(&files).unwrap();
    let metadata = "templates:\n  /var/lib/cloud/seed/nocloud-net/meta-data:\n    \
                    template: meta.tpl\n";
    fs::write(files.join("metadata.yaml"), metadata).unwrap();
    if is_rendered {
        fs::write(files.join("meta.tpl.out"), "instance-id: image\n").unwrap();
    }
}

#[tokio::test]
async fn share_seed_is_detected_before_ready() {
    let mut agent = TestAgent::configured(|config| {
        booting(&config.root);
        share_a_seed(config, true);
    });
    agent.ready().await;
    looked_again(&agent);
}

#[tokio::test]
async fn image_seeds_are_kept() {
    for is_rendered in [true, false] {
        let mut agent = configured(|config| {
            fs::create_dir(&config.root).unwrap();
            config.guest.cloud_init = CloudInit::NoCloud;
            share_a_seed(config, is_rendered);
        });
        let _host = host_of(&agent, HostData::default());
        agent.ready().await;
        assert!(agent.guest_socket().exists());
        assert!(!seed(&agent).exists(), "rendered: {is_rendered}");
    }
}

fn program(root: &Path, path: &str, script: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Written by another process: what some other test starts meanwhile would hold it open for
    // writing, and it could not be run (`ETXTBSY`).
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0"; chmod 755 "$0""#;
    let mut shell = Command::new("sh");
    let status = shell.args(["-c", write]).arg(path).arg(script).status();
    assert!(status.unwrap().success());
}
