//! `sshfs`: the agent's files as a file system of the host.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use harness::{TestAgent, TestFolder, eventually};
use nix::mount::{MntFlags, umount2};
use tokio::process::{Child, Command};

use crate::{bridge, random_file};

/// Time for the mount to be there.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// Entries of the large folder.
const ENTRIES: usize = 10_000;

/// A mounted folder. `Drop` unmounts it.
struct Mount {
    at: TestFolder,
    _process: Child,
}

impl Mount {
    async fn start(agent: &TestAgent, folder: &Path) -> Self {
        let at = TestFolder::new("mount");
        // sshfs adds the words of ssh, so it is given something that takes any.
        let script = agent.folder().join("ssh");
        fs::write(
            &script,
            format!("#!/bin/sh\nexec {}\n", bridge(agent).await),
        )
        .unwrap();
        fs::set_permissions(&script, Permissions::from_mode(0o700)).unwrap();
        let log = agent.folder().join("sshfs.log");
        let mut sshfs = Command::new("sshfs");
        sshfs
            .arg("-f")
            .arg(format!("vm:{}", folder.display()))
            .arg(at.path());
        sshfs
            .arg("-o")
            .arg(format!("ssh_command={}", script.display()));
        sshfs
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true);
        let process = sshfs.spawn();
        let process = process.unwrap_or_else(|error| panic!("sshfs: {error}: make setup"));
        let device = fs::metadata(at.path()).unwrap().dev();
        let mounted = async || fs::metadata(at.path()).is_ok_and(|root| root.dev() != device);
        assert!(
            eventually(MOUNT_TIMEOUT, mounted).await,
            "no mount; does /dev/fuse work here? sshfs says: {}",
            fs::read_to_string(&log).unwrap()
        );
        Self {
            at,
            _process: process,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if umount2(self.at.path(), MntFlags::MNT_DETACH).is_err() {
            let mut unmount = std::process::Command::new("fusermount3");
            let _ = unmount.arg("-uz").arg(self.at.path()).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sshfs_mount_behaves_like_a_file_system() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let mount = Mount::start(&agent, folder.path()).await;
    files(&mount, folder.path());
    names(&mount, folder.path());
    attributes(&mount, folder.path());
    many(&mount, folder.path());
    large(&mount, folder.path());
}

/// Create, append, write inside, truncate.
fn files(mount: &Mount, real: &Path) {
    let read = |name: &str| fs::read_to_string(real.join(name)).unwrap();
    fs::write(mount.path("file"), "one\n").unwrap();
    assert_eq!(read("file"), "one\n");
    let mut append = OpenOptions::new()
        .append(true)
        .open(mount.path("file"))
        .unwrap();
    append.write_all(b"two\n").unwrap();
    drop(append);
    assert_eq!(read("file"), "one\ntwo\n");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.path("file"))
        .unwrap();
    file.write_all_at(b"TWO", 4).unwrap();
    file.sync_all().unwrap();
    assert_eq!(read("file"), "one\nTWO\n");
    file.set_len(3).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one");
    assert_eq!(read("file"), "one");
    drop(file);
    let create = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.path("file"));
    assert_eq!(
        create.unwrap_err().kind(),
        std::io::ErrorKind::AlreadyExists
    );
}

/// Rename over, hard link, symbolic link, remove.
fn names(mount: &Mount, real: &Path) {
    fs::write(mount.path("old"), "old").unwrap();
    fs::write(mount.path("new"), "new").unwrap();
    fs::rename(mount.path("new"), mount.path("old")).unwrap();
    assert_eq!(fs::read_to_string(real.join("old")).unwrap(), "new");
    assert!(!mount.path("new").exists());
    fs::hard_link(mount.path("old"), mount.path("hard")).unwrap();
    assert_eq!(fs::metadata(real.join("old")).unwrap().nlink(), 2);
    symlink("old", mount.path("link")).unwrap();
    assert_eq!(fs::read_link(real.join("link")).unwrap(), Path::new("old"));
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("old"));
    assert_eq!(fs::read_to_string(mount.path("link")).unwrap(), "new");
    fs::create_dir_all(mount.path("a/b")).unwrap();
    fs::write(mount.path("a/b/c"), "").unwrap();
    fs::remove_dir(mount.path("a")).unwrap_err();
    fs::rename(mount.path("a"), mount.path("moved")).unwrap();
    assert!(real.join("moved/b/c").exists());
    fs::remove_dir_all(mount.path("moved")).unwrap();
    assert!(!real.join("moved").exists());
    fs::remove_file(mount.path("hard")).unwrap();
    assert!(real.join("old").exists());
}

/// Modes and times.
fn attributes(mount: &Mount, real: &Path) {
    fs::write(mount.path("mode"), "").unwrap();
    fs::set_permissions(mount.path("mode"), Permissions::from_mode(0o640)).unwrap();
    assert_eq!(
        fs::metadata(real.join("mode")).unwrap().mode() & 0o7777,
        0o640
    );
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = OpenOptions::new()
        .write(true)
        .open(mount.path("mode"))
        .unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    assert_eq!(
        fs::metadata(real.join("mode")).unwrap().modified().unwrap(),
        time
    );
    let room = nix::sys::statvfs::statvfs(mount.at.path()).unwrap();
    assert!(room.blocks() > 0);
}

/// A folder of ten thousand entries.
fn many(mount: &Mount, real: &Path) {
    fs::create_dir(real.join("many")).unwrap();
    for number in 0..ENTRIES {
        File::create(real.join(format!("many/entry {number}"))).unwrap();
    }
    let listed = fs::read_dir(mount.path("many")).unwrap();
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), ENTRIES);
}

/// A file that takes many requests.
fn large(mount: &Mount, real: &Path) {
    random_file(&real.join("large"), 50_000_000);
    fs::copy(mount.path("large"), mount.path("copy")).unwrap();
    assert!(fs::read(real.join("large")).unwrap() == fs::read(real.join("copy")).unwrap());
}
