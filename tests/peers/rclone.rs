//! `rclone`, through an `sshd`.

use std::{fs, path::Path};

use harness::{TestAgent, TestFolder};
use tokio::process::Command;

use crate::{assert_same_tree, finish, plant, sshd::Sshd, succeed};

#[tokio::test]
async fn rclone_syncs_and_checks_a_tree() {
    let agent = TestAgent::start();
    let sshd = Sshd::start(&agent).await;
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    plant(&path("from"));
    fs::remove_dir(path("from/empty")).unwrap();
    let remote = format!("vm:{}", path("there").display());
    let (from, back) = (path("from"), path("back"));
    let text = |path: &Path| path.display().to_string();

    succeed(&mut rclone(&sshd, &["sync", &text(&from), &remote])).await;
    assert_same_tree(&from, &path("there"));
    // The contents are compared, as a hash would have to be made by a shell.
    succeed(&mut rclone(
        &sshd,
        &["check", "--download", &text(&from), &remote],
    ))
    .await;

    fs::write(path("there/one/large"), "smaller").unwrap();
    fs::write(path("there/surplus"), "surplus").unwrap();
    let words = ["check", "--download", &text(&from), &remote];
    let output = finish(&mut rclone(&sshd, &words)).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    succeed(&mut rclone(&sshd, &["sync", &text(&from), &remote])).await;
    assert_same_tree(&from, &path("there"));

    succeed(&mut rclone(&sshd, &["sync", &remote, &text(&back)])).await;
    assert_same_tree(&from, &back);
    let log = sshd.log();
    assert!(log.contains("subsystem 'sftp'"), "{log}");
}

fn rclone(sshd: &Sshd, words: &[&str]) -> Command {
    let mut rclone = Command::new("rclone");
    rclone
        .args(words)
        .env("RCLONE_CONFIG", sshd.folder().join("rclone.conf"));
    for (name, value) in [
        ("TYPE", "sftp".to_owned()),
        ("HOST", "127.0.0.1".to_owned()),
        ("PORT", sshd.port.to_string()),
        ("USER", sshd.user.clone()),
        ("KEY_FILE", sshd.key.display().to_string()),
        ("DISABLE_HASHCHECK", "true".to_owned()),
        ("SHELL_TYPE", "none".to_owned()),
    ] {
        rclone.env(format!("RCLONE_CONFIG_VM_{name}"), value);
    }
    rclone
}
