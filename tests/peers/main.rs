//! Other people's SFTP clients on our agent, and our client on OpenSSH's server.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says what it did"
)]

mod openssh_client;
mod openssh_server;
mod paramiko;
mod pyyaml;
mod rclone;
mod russh;
mod sshd;
mod sshfs;

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use harness::{
    TestAgent,
    vm::{Product, build_for_here},
};
use tokio::{process::Command, sync::OnceCell, time::timeout};

/// Longest that any one command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binaries, built once.
async fn product() -> &'static Product {
    static PRODUCT: OnceCell<Product> = OnceCell::const_new();
    PRODUCT
        .get_or_init(async || build_for_here().await.unwrap())
        .await
}

/// The words that speak SFTP with an agent on stdin and stdout.
async fn bridge(agent: &TestAgent) -> String {
    let cli = product().await.cli.display();
    format!("{cli} sftp --plain --stdio {}", agent.endpoint())
}

/// Runs a command to its end, which must be a good one, and gives what it printed.
async fn succeed(command: &mut Command) -> String {
    let output = finish(command).await;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{printed}\n{complaints}",
        output.status
    );
    printed
}

/// Runs a command to its end.
async fn finish(command: &mut Command) -> Output {
    let output = command.kill_on_drop(true).output();
    let output = timeout(PATIENCE, output).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} does not end"));
    output.unwrap_or_else(|error| panic!("{command:?}: {error}: make setup"))
}

/// Writes a file of random bytes.
fn random_file(path: &Path, bytes: u64) {
    let mut random = fs::File::open("/dev/urandom").unwrap().take(bytes);
    std::io::copy(&mut random, &mut fs::File::create(path).unwrap()).unwrap();
}

/// Makes a tree of 200 files in some folders, with empty ones, large ones, and strange names.
fn plant(root: &Path) {
    for folder in ["", "one", "one/two", "empty", " space ", "grün"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    for number in 0..200 {
        let folder = ["", "one", "one/two", " space ", "grün"][number % 5];
        let path = root.join(folder).join(format!("file {number}"));
        fs::write(&path, vec![b'x'; number * number]).unwrap();
    }
    random_file(&root.join("one/large"), 3_000_000);
}

/// Everything below a folder: path, whether it is a folder, and the contents.
fn tree(root: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                found.push((name, None));
                folders.push(path);
            } else {
                found.push((name, Some(fs::read(&path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

/// Compares two trees, without printing what is in the files.
fn assert_same_tree(one: &Path, other: &Path) {
    let (one, other) = (tree(one), tree(other));
    let names = |tree: &[(PathBuf, Option<Vec<u8>>)]| -> Vec<_> {
        let sizes = tree
            .iter()
            .map(|(name, data)| (name.clone(), data.as_ref().map(Vec::len)));
        sizes.collect()
    };
    assert_eq!(names(&one), names(&other));
    assert!(one == other, "the contents differ");
}
