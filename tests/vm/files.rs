//! Trees and batches, by our own command line; and an agent that is killed at a file.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use harness::{TestVm, vm::VmOptions};
use serde_json::Value;

use crate::{OUR_FAULT, assert_same_content, finish, in_guest, random_file, shared};

/// Files, folders and links that `plant` makes, with the folder that they are in.
pub(crate) const PLANTED: &str = "14\n";

/// Makes a tree with names that nobody types.
pub(crate) fn plant(root: &Path) {
    fs::create_dir(root).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    let folder = root.join(OsStr::from_bytes(b"-folder\xff\n"));
    fs::create_dir(&folder).unwrap();
    let names: [&[u8]; 5] = [b"new\nline", b"-rf", b"\xff\xfe", &[b'n'; 255], b"\x1b[31m"];
    for (number, name) in names.iter().enumerate() {
        let path = root.join(OsStr::from_bytes(name));
        fs::write(path, vec![7; number * 40_000]).unwrap();
        fs::write(folder.join(OsStr::from_bytes(name)), name).unwrap();
    }
    symlink("../nowhere\n", root.join("link")).unwrap();
}

/// What is below a folder: mode, time and content of each, or where it leads.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let (mut time, mut content) = (metadata.mtime(), Vec::new());
        if metadata.is_dir() {
            waiting.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if metadata.is_symlink() {
            // Other agents cannot set the time of a link.
            time = 0;
            content = fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes();
        } else {
            content = fs::read(&path).unwrap();
        }
        let name = path.strip_prefix(root).unwrap().to_owned();
        found.insert(name, (metadata.mode(), time, content));
    }
    found
}

fn assert_succeeded(output: &Output) {
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[tokio::test]
async fn tree_with_unusual_names_survives_push_and_pull() {
    let vm = shared().await;
    let (there, back) = (vm.scratch().join("odd-tree"), vm.scratch().join("odd-back"));
    plant(&there);
    let inside = format!("{}:/tmp/odd-tree", vm.name());
    for words in [
        ["push", "-r", there.to_str().unwrap(), &inside],
        ["pull", "-r", &inside, back.to_str().unwrap()],
    ] {
        assert_succeeded(&finish(vm.cli(words)).await);
    }
    assert!(tree(&back) == tree(&there), "the trees differ");
    let count = "find /tmp/odd-tree -print0 | tr -dc '\\0' | wc -c; rm -r /tmp/odd-tree";
    assert_eq!(in_guest(vm, count).await, PLANTED);
}

#[tokio::test]
async fn batch_runs_in_a_vm() {
    let vm = shared().await;
    let there = random_file(vm, "batch there", 300_000);
    let back = vm.scratch().join("batch back");
    let batch = vm.scratch().join("batch");
    let lines = format!(
        "mkdir /tmp/batch\ncd /tmp/batch\nput '{}' one\nrename one $'two\\xff'\nln -s one link\n\
         chmod 600 $'two\\xff'\nls -la\nget $'two\\xff' '{}'\n-rm missing\nrm link\nrm *\n\
         rmdir /tmp/batch\n",
        there.display(),
        back.display()
    );
    fs::write(&batch, lines).unwrap();
    let sftp = || vm.cli(["sftp", "-b", batch.to_str().unwrap(), vm.name()]);
    let output = finish(sftp()).await;
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains(r"two\xff"),
        "{output:?}"
    );
    assert_same_content(&there, &back);
    assert_eq!(
        in_guest(vm, "ls -d /tmp/batch 2>&1 || true")
            .await
            .lines()
            .count(),
        1
    );

    fs::write(
        &batch,
        "mkdir /tmp/stopped\nrm /tmp/missing\nrmdir /tmp/stopped\n",
    )
    .unwrap();
    let output = finish(sftp()).await;
    assert_eq!(output.status.code(), OUR_FAULT, "{output:?}");
    // It ended at the second line.
    in_guest(vm, "rmdir /tmp/stopped").await;
}

#[tokio::test]
async fn push_resumes_after_the_agent_was_killed() {
    let vm = TestVm::start(VmOptions {
        memory_mib: 1024,
        ..VmOptions::new("resumed")
    })
    .await
    .unwrap();
    let there = random_file(&vm, "resumed", 60_000_000);
    in_guest(&vm, "echo old >/tmp/file").await;
    // The agent is killed as soon as a third is there.
    let killer = "set -- $(pidof vsock-agent); echo ready; while :; do \
                  size=$(stat -c %s /tmp/.file.*.part 2>/dev/null || echo 0); \
                  [ $size -gt 20000000 ] && kill -9 $1 && exit; done";
    let mut kill = vm.exec(["sh", "-c", killer]);
    let mut kill = kill
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    let stdout = kill.stdout.as_mut().unwrap();
    tokio::io::AsyncReadExt::read_exact(stdout, &mut ready)
        .await
        .unwrap();
    let inside = format!("{}:/tmp/file", vm.name());
    let push = |flag| vm.cli(["push", flag, "--json", there.to_str().unwrap(), &inside]);
    let output = finish(push("--no-fsync")).await;
    assert_eq!(output.status.code(), OUR_FAULT, "{output:?}");
    kill.wait().await.unwrap();
    assert_eq!(in_guest(&vm, "cat /tmp/file").await, "old\n");

    let output = finish(push("--resume")).await;
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8(output.stdout).unwrap();
    let events = words
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let started = events.into_iter().find(|event| event["event"] == "started");
    let start = started.unwrap()["resumed_at"].as_u64().unwrap();
    assert!((12_000_000..60_000_000).contains(&start), "from {start}");
    let back = vm.scratch().join("resumed-back");
    let output = finish(vm.cli(["pull", &inside, back.to_str().unwrap()])).await;
    assert_succeeded(&output);
    assert_same_content(&there, &back);
    assert_eq!(
        in_guest(&vm, "ls -A /tmp | grep -c part || true").await,
        "0\n"
    );
}
