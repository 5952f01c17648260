//! The data of an earlier boot, while the host is away.

use std::{fs, path::Path};

use harness::{HostData, RawClient, TestAgent, TestFolder};
use serde_json::{Value, json};
use vsock_agent::CloudInit;

use super::{configured, host_of, put, until};

/// A guest whose `/` is this folder, on a file system of this kind.
fn boot(disk: &Path, kind: &str, cloud_init: CloudInit) -> TestAgent {
    fs::create_dir_all(disk.join("proc/self")).unwrap();
    fs::write(
        disk.join("proc/self/mounts"),
        format!("x / {kind} rw 0 0\n"),
    )
    .unwrap();
    configured(|config| {
        config.root = disk.to_owned();
        config.guest.cloud_init = cloud_init;
    })
}

fn file(disk: &Path) -> std::path::PathBuf {
    disk.join("var/lib/vsock-agent/instance-data.json")
}

async fn role(agent: &TestAgent) -> Option<String> {
    let guest = RawClient::new(&agent.guest_socket());
    let reply = guest.request("GET", "/1.0/config/user.role", "").await;
    reply.body.as_str().map(str::to_owned)
}

async fn is_kept(agent: &TestAgent) -> bool {
    let guest = RawClient::new(&agent.guest_socket());
    let reply = guest.request("GET", "/1.0", "").await;
    reply.body.get("vsock_agent_kept") == Some(&Value::Bool(true))
}

#[tokio::test]
async fn boot_without_host_serves_cached_data() {
    let disk = TestFolder::new("kept");
    let mut first = boot(disk.path(), "ext4", CloudInit::Lxd);
    let host = host_of(&first, HostData::with(&[("user.role", "web")]));
    first.ready().await;
    assert!(!is_kept(&first).await);
    until(async || file(disk.path()).exists()).await;
    drop((host, first));

    let mut second = boot(disk.path(), "ext4", CloudInit::Lxd);
    second.ready().await;
    assert!(
        second.guest_socket().exists(),
        "ready before there are data"
    );
    assert_eq!(role(&second).await.as_deref(), Some("web"));
    assert!(is_kept(&second).await);

    let _host = host_of(&second, HostData::with(&[("user.role", "db")]));
    until(async || role(&second).await.as_deref() == Some("db")).await;
    assert!(!is_kept(&second).await);

    put(&second, "", false).await;
    until(async || !file(disk.path()).exists()).await;
}

#[tokio::test]
async fn data_is_not_cached_on_tmpfs() {
    let disk = TestFolder::new("kept-tmpfs");
    let mut agent = boot(disk.path(), "tmpfs", CloudInit::Lxd);
    let _host = host_of(&agent, HostData::default());
    agent.ready().await;
    assert!(!file(disk.path()).exists());
}

#[tokio::test]
async fn stale_seed_is_removed_at_the_next_boot() {
    let disk = TestFolder::new("old-seed");
    let seed = disk.path().join("var/lib/cloud/seed/nocloud");
    let mut with_seeds = boot(disk.path(), "ext4", CloudInit::NoCloud);
    let host = host_of(&with_seeds, HostData::default());
    with_seeds.ready().await;
    assert!(seed.join("meta-data").exists());
    drop((host, with_seeds));
    assert!(seed.exists(), "a seed stays for the next boot");

    // Cloud-init has read it already in the boot that has another configuration.
    drop(boot(disk.path(), "ext4", CloudInit::Lxd));
    assert!(!seed.exists());

    fs::create_dir_all(&seed).unwrap();
    fs::write(seed.join("meta-data"), json!({}).to_string()).unwrap();
    drop(boot(disk.path(), "ext4", CloudInit::Lxd));
    assert!(seed.exists(), "what is not ours stays");
}
