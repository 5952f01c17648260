//! Our client on OpenSSH's `sftp-server`, behind as much HTTP as it takes to get there.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    process::Stdio,
};

use harness::{StockServer, TestFolder};
use tokio::process::Command;

use crate::{assert_same_tree, plant, product, succeed};

struct Listener(StockServer);

impl Listener {
    fn start() -> Self {
        Self(StockServer::start())
    }

    async fn cli(&self, words: &[&str]) -> String {
        let endpoint = self.0.endpoint();
        let words = words.iter().map(|word| word.replace("VM", &endpoint));
        let mut cli = Command::new(&product().await.cli);
        cli.args(words).arg("--plain").stdin(Stdio::null());
        succeed(&mut cli).await
    }
}

#[tokio::test]
async fn client_round_trips_files_with_openssh_server() {
    let server = Listener::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    crate::random_file(&path("from"), 5_000_000);
    fs::set_permissions(path("from"), PermissionsExt::from_mode(0o741)).unwrap();
    let text = |path: &Path| path.display().to_string();
    let remote = format!("VM:{}", path("there").display());
    server.cli(&["push", &text(&path("from")), &remote]).await;
    server.cli(&["pull", &remote, &text(&path("back"))]).await;
    for copy in ["there", "back"] {
        assert!(
            fs::read(path("from")).unwrap() == fs::read(path(copy)).unwrap(),
            "{copy}"
        );
        assert_eq!(
            fs::metadata(path(copy)).unwrap().mode() & 0o777,
            0o741,
            "{copy}"
        );
    }
    let listed = server
        .cli(&["ls", &format!("VM:{}", folder.path().display())])
        .await;
    for name in ["from", "there", "back"] {
        assert!(listed.contains(name), "{listed}");
    }
}

#[tokio::test]
async fn client_round_trips_a_tree_with_openssh_server() {
    let server = Listener::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    plant(&path("from"));
    symlink("file 5", path("from/link")).unwrap();
    let text = |path: &Path| path.display().to_string();
    let remote = format!("VM:{}", path("there").display());
    server
        .cli(&["push", "-r", &text(&path("from")), &remote])
        .await;
    assert_same_tree(&path("from"), &path("there"));
    server
        .cli(&["pull", "-r", &remote, &text(&path("back"))])
        .await;
    assert_same_tree(&path("from"), &path("back"));
    for copy in ["there", "back"] {
        let link = fs::read_link(path(copy).join("link")).unwrap();
        assert_eq!(link, Path::new("file 5"), "{copy}");
    }
}

#[tokio::test]
async fn client_resumes_with_openssh_server() {
    let server = Listener::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    crate::random_file(&path("from"), 10_000_000);
    let content = fs::read(path("from")).unwrap();
    let near = |name: &str| path(name).display().to_string();
    let far = |name: &str| format!("VM:{}", path(name).display());
    for words in [
        ["push", &near("from"), &far("to")],
        ["pull", &far("from"), &near("to")],
    ] {
        fs::write(path(".to.0123456789abcdef.part"), &content[..9_000_000]).unwrap();
        let words = [&words[..], &["--resume", "--json"]].concat();
        let printed = server.cli(&words).await;
        assert!(printed.contains("\"resumed_at\":9000000"), "{printed}");
        assert!(fs::read(path("to")).unwrap() == content, "{words:?}");
        fs::remove_file(path("to")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

/// OpenSSH's server sets the mode before the owner, whose change takes special bits away.
#[tokio::test]
async fn push_to_openssh_server_keeps_special_bits_and_owner() {
    let server = Listener::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    for (name, bytes) in [("small", 1000), ("large", 5_000_000)] {
        crate::random_file(&path(name), bytes);
        let target = path(&format!("{name}-target"));
        fs::write(&target, "old").unwrap();
        chown(&target, Some(65534), Some(65533)).expect("this test needs root");
        fs::set_permissions(&target, PermissionsExt::from_mode(0o6755)).unwrap();
        let remote = format!("VM:{}", target.display());
        let source = path(name).display().to_string();
        server.cli(&["push", &source, &remote]).await;
        let there = fs::metadata(&target).unwrap();
        assert_eq!(
            (there.uid(), there.gid(), there.mode() & 0o7777),
            (65534, 65533, 0o6755),
            "{name}"
        );
        assert!(fs::read(&target).unwrap() == fs::read(path(name)).unwrap());
    }
}
