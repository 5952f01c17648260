//! What cloud-init finds in the guest's file system.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use harness::{HostData, TestAgent};
use serde_json::json;
use vsock_agent::CloudInit;

use super::{configured, host_of, put, until};

fn start(cloud_init: CloudInit) -> TestAgent {
    configured(|config| {
        fs::create_dir(&config.guest.root).unwrap();
        config.guest.cloud_init = cloud_init;
    })
}

fn seed(agent: &TestAgent) -> PathBuf {
    agent.folder().join("root/var/lib/cloud/seed/nocloud")
}

#[tokio::test]
async fn seeds_are_there_before_the_guest_goes_on_and_follow_the_host() {
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
async fn no_seed_shadows_the_socket_unless_it_is_asked_for() {
    let mut agent = start(CloudInit::Lxd);
    let _host = host_of(&agent, HostData::default());
    agent.ready().await;
    assert!(agent.guest_socket().exists());
    assert!(!seed(&agent).exists());
}

#[tokio::test]
async fn cloud_init_has_looked_again_before_the_guest_goes_on() {
    let mut agent = start(CloudInit::Lxd);
    let root = agent.folder().join("root");
    for folder in ["run/systemd/system", "etc/cloud", "run/cloud-init"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("run/cloud-init/disabled"), "").unwrap();
    program(&root, "usr/lib/cloud-init/ds-identify", "exit 1");
    let generator = "usr/lib/systemd/system-generators/cloud-init-generator";
    program(&root, generator, "exit 1");
    let log = root.join("log");
    let script = format!(
        "echo \"$*\" >> {}\n[ \"$2\" != --property=SystemState ] || echo SystemState=starting",
        log.display()
    );
    program(&root, "usr/bin/systemctl", &script);
    let _host = host_of(&agent, HostData::default());
    agent.ready().await;
    assert!(!root.join("run/cloud-init").exists());
    let log = fs::read_to_string(log).unwrap();
    let done: Vec<_> = log.lines().skip(2).collect();
    assert_eq!(
        json!(done),
        json!(["daemon-reload", "--no-block start cloud-init.target"])
    );
}

fn program(root: &Path, path: &str, script: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}
