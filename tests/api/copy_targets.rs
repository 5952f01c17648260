//! What becomes of what has the name of a copied file: kept, followed, written to, but never lost.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    pin::pin,
    sync::Mutex,
    time::Duration,
};

use harness::{TestAgent, TestFolder};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::time::timeout;
use vsock_agent_client::{
    Client, RemotePath, Security, Sftp,
    copy::{self, CopyError, CopyEvent, CopyObserver, CopyOptions, CopySummary, InPlace},
};

/// User and group of a file that is not ours.
const OTHERS: (u32, u32) = (65534, 65533);

/// Which way a file goes; both sides are in one folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Push,
    Pull,
}

const WAYS: [Way; 2] = [Way::Push, Way::Pull];

struct Both {
    _agent: TestAgent,
    folder: TestFolder,
    sftp: Sftp,
}

/// Remembers what was written in place.
#[derive(Default)]
struct Reported(Mutex<Vec<InPlace>>);

impl CopyObserver for Reported {
    fn observe(&self, event: CopyEvent<'_>) {
        if let CopyEvent::InPlace { reason, .. } = event {
            self.0.lock().unwrap().push(reason);
        }
    }
}

impl Both {
    async fn start() -> Self {
        let agent = TestAgent::start();
        let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
        let sftp = client.sftp().await.unwrap();
        let folder = TestFolder::new("targets");
        fs::write(folder.path().join("source"), "new content").unwrap();
        Self {
            _agent: agent,
            folder,
            sftp,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Copies `from` to `to`; says what was written in place.
    async fn copy(
        &self,
        way: Way,
        from: &str,
        to: &str,
        options: &CopyOptions,
    ) -> Result<(CopySummary, Vec<InPlace>), CopyError> {
        let (from, to) = (self.at(from), self.at(to));
        let reported = Reported::default();
        let copied = match way {
            Way::Push => {
                let to = RemotePath::from(to.as_path());
                copy::push(&self.sftp, &[from], &to, options, &reported).await
            }
            Way::Pull => {
                let from = RemotePath::from(from.as_path());
                copy::pull(&self.sftp, &[from], &to, options, &reported).await
            }
        };
        Ok((copied?, reported.0.into_inner().unwrap()))
    }
}

fn options(change: impl FnOnce(&mut CopyOptions)) -> CopyOptions {
    let mut options = CopyOptions::default();
    options.fsync = Some(false);
    change(&mut options);
    options
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn owner(path: &Path) -> (u32, u32) {
    let there = fs::symlink_metadata(path).unwrap();
    (there.uid(), there.gid())
}

#[tokio::test]
async fn copy_keeps_modes_of_existing_directories() {
    let both = Both::start().await;
    fs::create_dir_all(both.at("from/known/new/below")).unwrap();
    for below in ["known/file", "known/new/file"] {
        fs::write(both.at("from").join(below), "text").unwrap();
    }
    set_mode(&both.at("from"), 0o700);
    set_mode(&both.at("from/known/new"), 0o750);
    for way in WAYS {
        let to = both.at(&format!("to-{way:?}"));
        fs::create_dir_all(to.join("from/known")).unwrap();
        set_mode(&to.join("from"), 0o1777);
        chown(to.join("from/known"), None, Some(OTHERS.1)).unwrap();
        set_mode(&to.join("from/known"), 0o2775);
        let before = fs::metadata(to.join("from")).unwrap().mtime_nsec();
        let recursive = options(|options| options.recursive = true);
        let (copied, _) = both
            .copy(way, "from", &format!("to-{way:?}"), &recursive)
            .await
            .unwrap();
        assert_eq!((copied.files, copied.failed), (2, 0), "{way:?}");
        assert_eq!(mode(&to.join("from")), 0o1777, "{way:?}");
        assert_eq!(mode(&to.join("from/known")), 0o2775, "{way:?}");
        assert_eq!(mode(&to.join("from/known/new")), 0o2750, "{way:?}");
        assert_eq!(mode(&to.join("from/known/new/below")), 0o2755, "{way:?}");
        assert_eq!(owner(&to.join("from/known/new/below")).1, OTHERS.1);
        let now = fs::metadata(to.join("from")).unwrap().mtime_nsec();
        assert_eq!(now, before, "{way:?}");
    }
}

#[tokio::test]
async fn overwritten_file_keeps_owner_mode_and_attributes() {
    let both = Both::start().await;
    let target = both.at("target");
    for way in WAYS {
        for resume in [false, true] {
            fs::write(&target, "old").unwrap();
            set_mode(&target, 0o600);
            chown(&target, Some(OTHERS.0), Some(OTHERS.1)).unwrap();
            let by_default = options(|options| options.resume = resume);
            let (_, reported) = both
                .copy(way, "source", "target", &by_default)
                .await
                .unwrap();
            assert_eq!((mode(&target), owner(&target)), (0o600, OTHERS), "{way:?}");
            assert_eq!(fs::read(&target).unwrap(), b"new content");
            assert_eq!(reported, []);
            fs::remove_file(&target).unwrap();
        }

        fs::write(&target, "old").unwrap();
        set_mode(&target, 0o600);
        let preserve = options(|options| options.preserve = true);
        both.copy(way, "source", "target", &preserve).await.unwrap();
        assert_eq!(mode(&target), 0o644, "{way:?}");
        let with_mode = options(|options| options.mode = Some(0o4711));
        both.copy(way, "source", "target", &with_mode)
            .await
            .unwrap();
        assert_eq!(mode(&target), 0o4711, "{way:?}");
        let with_owner = options(|options| options.owners = true);
        chown(&target, Some(OTHERS.0), Some(OTHERS.1)).unwrap();
        both.copy(way, "source", "target", &with_owner)
            .await
            .unwrap();
        assert_eq!(owner(&target), (0, 0), "{way:?}");
        fs::remove_file(&target).unwrap();
    }
}

#[tokio::test]
async fn small_overwritten_files_keep_owner_and_mode() {
    let both = Both::start().await;
    fs::create_dir(both.at("from")).unwrap();
    for name in ["new", "old", "linked", "other-name"] {
        fs::write(both.at("from").join(name), name).unwrap();
    }
    for way in WAYS {
        let name = format!("to-{way:?}");
        let to = both.at(&name).join("from");
        fs::create_dir_all(&to).unwrap();
        fs::write(to.join("old"), "").unwrap();
        set_mode(&to.join("old"), 0o640);
        chown(to.join("old"), Some(OTHERS.0), Some(OTHERS.1)).unwrap();
        fs::write(to.join("elsewhere"), "").unwrap();
        symlink("elsewhere", to.join("linked")).unwrap();
        fs::write(to.join("other-name"), "").unwrap();
        fs::hard_link(to.join("other-name"), to.join("hard")).unwrap();
        let recursive = options(|options| options.recursive = true);
        let (copied, reported) = both.copy(way, "from", &name, &recursive).await.unwrap();
        assert_eq!((copied.files, copied.failed), (4, 0), "{way:?}");
        assert_eq!(
            (mode(&to.join("old")), owner(&to.join("old"))),
            (0o640, OTHERS)
        );
        assert_eq!(fs::read(to.join("hard")).unwrap(), b"other-name", "{way:?}");
        assert_eq!(reported, [InPlace::HardLinks], "{way:?}");
        // A guest's names do not lead through links of ours.
        let (link, elsewhere) = match way {
            Way::Push => (true, &b"linked"[..]),
            Way::Pull => (false, &b""[..]),
        };
        let is_link = to.join("linked").symlink_metadata().unwrap().is_symlink();
        assert_eq!(is_link, link, "{way:?}");
        assert_eq!(
            fs::read(to.join("elsewhere")).unwrap(),
            elsewhere,
            "{way:?}"
        );
    }
}

#[tokio::test]
async fn copy_follows_a_target_link_or_replaces_it_on_request() {
    let both = Both::start().await;
    fs::create_dir(both.at("elsewhere")).unwrap();
    let link = both.at("link");
    for way in WAYS {
        fs::write(both.at("elsewhere/file"), "old").unwrap();
        set_mode(&both.at("elsewhere/file"), 0o604);
        let _ = fs::remove_file(&link);
        symlink("elsewhere/file", &link).unwrap();
        both.copy(way, "source", "link", &options(|_| {}))
            .await
            .unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink(), "{way:?}");
        assert_eq!(fs::read(both.at("elsewhere/file")).unwrap(), b"new content");
        assert_eq!(mode(&both.at("elsewhere/file")), 0o604, "{way:?}");

        let replaces = options(|options| options.no_dereference = true);
        fs::write(both.at("elsewhere/file"), "kept").unwrap();
        both.copy(way, "source", "link", &replaces).await.unwrap();
        assert!(link.symlink_metadata().unwrap().is_file(), "{way:?}");
        assert_eq!(fs::read(both.at("elsewhere/file")).unwrap(), b"kept");

        fs::remove_file(&link).unwrap();
        symlink("nowhere", &link).unwrap();
        let refused = both.copy(way, "source", "link", &options(|_| {})).await;
        assert!(
            matches!(refused, Err(CopyError::DanglingLink)),
            "{way:?}: {refused:?}"
        );
        assert!(!both.at("nowhere").exists(), "{way:?}");
    }
}

#[tokio::test]
async fn copy_writes_to_devices_and_fifos() {
    let both = Both::start().await;
    let fifo = both.at("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    fs::write(both.at("large"), &large).unwrap();
    for way in WAYS {
        for source in ["source", "large"] {
            let path = fifo.clone();
            let reader = std::thread::spawn(move || {
                let mut all = Vec::new();
                fs::File::open(path).unwrap().read_to_end(&mut all).unwrap();
                all
            });
            both.copy(way, source, "fifo", &options(|_| {}))
                .await
                .unwrap();
            let read = reader.join().unwrap();
            assert_eq!(read, fs::read(both.at(source)).unwrap(), "{way:?} {source}");
        }
        let (_, reported) = both
            .copy(way, "large", "../../dev/null", &options(|_| {}))
            .await
            .unwrap();
        assert_eq!(reported, []);

        let socket = both.at("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refused = both.copy(way, "source", "socket", &options(|_| {})).await;
        assert!(
            matches!(refused, Err(CopyError::Socket)),
            "{way:?}: {refused:?}"
        );
        fs::remove_file(&socket).unwrap();
    }
}

#[tokio::test]
async fn copied_link_replaces_only_files_and_links() {
    let both = Both::start().await;
    fs::create_dir(both.at("from")).unwrap();
    symlink("nowhere", both.at("from/link")).unwrap();
    let recursive = options(|options| options.recursive = true);
    for way in WAYS {
        let pipe = both.at("to/from/link");
        fs::create_dir_all(both.at("to/from")).unwrap();
        mkfifo(&pipe, Mode::S_IRUSR).unwrap();
        let (copied, _) = both.copy(way, "from", "to", &recursive).await.unwrap();
        assert_eq!((copied.links, copied.failed), (0, 1), "{way:?}");
        assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo());
        fs::remove_dir_all(both.at("to")).unwrap();
    }
}

#[tokio::test]
async fn copy_waits_for_a_reader_of_a_fifo() {
    let both = Both::start().await;
    let fifo = both.at("fifo");
    for way in WAYS {
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let by_default = options(|_| {});
        let mut copying = pin!(both.copy(way, "source", "fifo", &by_default));
        // Nothing tells that it waits. That it does not end is seen; it may not have begun.
        let waited = timeout(Duration::from_millis(300), copying.as_mut()).await;
        assert!(waited.is_err(), "{way:?}: {waited:?}");
        fs::remove_file(&fifo).unwrap();
        fs::create_dir(&fifo).unwrap();
        let ended = timeout(Duration::from_secs(60), copying).await;
        ended.expect("an end").unwrap_err();
        fs::remove_dir(&fifo).unwrap();
    }
}

/// An ACL (`linux/posix_acl_xattr.h`) by which user 65534 may read and write.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 6, 65534),
        (0x04, 4, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        acl.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[tokio::test]
async fn overwritten_file_keeps_acl_xattrs_and_label() {
    let both = Both::start().await;
    let target = both.at("target");
    let attributes: [(&str, Vec<u8>); 3] = [
        ("system.posix_acl_access", acl()),
        ("user.note", b"kept".to_vec()),
        // No security module looks at this one; it is copied as theirs are.
        ("security.vsock-agent-test", b"label".to_vec()),
    ];
    for way in WAYS {
        for by in [options(|_| {}), options(|options| options.in_place = true)] {
            fs::write(&target, "old").unwrap();
            for (name, value) in &attributes {
                xattr::set(&target, name, value).unwrap_or_else(|error| {
                    let folder = both.folder.path().display();
                    panic!(
                        "this test needs root, and {name} on the file system of {folder}: {error}"
                    )
                });
            }
            let (_, reported) = both.copy(way, "source", "target", &by).await.unwrap();
            assert_eq!(reported, [], "{way:?}");
            assert_eq!(fs::read(&target).unwrap(), b"new content");
            for (name, value) in &attributes {
                let there = xattr::get(&target, name).unwrap();
                assert_eq!(there.as_ref(), Some(value), "{way:?} {name}");
            }
            fs::remove_file(&target).unwrap();
        }
    }
}

#[tokio::test]
async fn hard_linked_target_is_written_in_place() {
    let both = Both::start().await;
    let target = both.at("target");
    for way in WAYS {
        fs::write(&target, "old and longer than what is new").unwrap();
        fs::hard_link(&target, both.at("other")).unwrap();
        let (_, reported) = both
            .copy(way, "source", "target", &options(|_| {}))
            .await
            .unwrap();
        assert_eq!(reported, [InPlace::HardLinks], "{way:?}");
        assert_eq!(fs::read(both.at("other")).unwrap(), b"new content");
        fs::remove_file(both.at("other")).unwrap();

        let inode = fs::metadata(&target).unwrap().ino();
        fs::write(&target, "old").unwrap();
        let in_place = options(|options| options.in_place = true);
        let (_, reported) = both.copy(way, "source", "target", &in_place).await.unwrap();
        assert_eq!(
            (reported, fs::metadata(&target).unwrap().ino()),
            (vec![], inode)
        );
        assert_eq!(fs::read(&target).unwrap(), b"new content");
        fs::remove_file(&target).unwrap();
        both.copy(way, "source", "target", &in_place).await.unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new content");
        fs::remove_file(&target).unwrap();
    }
    let names: Vec<_> = fs::read_dir(both.folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test]
async fn pull_applies_the_umask_to_new_files() {
    let both = Both::start().await;
    fs::create_dir(both.at("from")).unwrap();
    fs::write(both.at("from/file"), "text").unwrap();
    set_mode(&both.at("from/file"), 0o666);
    set_mode(&both.at("from"), 0o777);
    let umask = fs::read_to_string("/proc/self/status").unwrap();
    let umask = umask.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = u32::from_str_radix(umask.unwrap().trim(), 8).unwrap();
    assert_ne!(umask & 0o022, 0, "this test needs a umask");
    let recursive = options(|options| options.recursive = true);
    both.copy(Way::Pull, "from", "to", &recursive)
        .await
        .unwrap();
    assert_eq!(mode(&both.at("to")), 0o777 & !umask);
    assert_eq!(mode(&both.at("to/file")), 0o666 & !umask);
    let preserve = options(|options| {
        options.recursive = true;
        options.preserve = true;
    });
    both.copy(Way::Pull, "from", "exactly", &preserve)
        .await
        .unwrap();
    assert_eq!(mode(&both.at("exactly")), 0o777);
    assert_eq!(mode(&both.at("exactly/file")), 0o666);
}

#[tokio::test]
async fn copying_a_file_over_itself_in_place_keeps_its_content() {
    let both = Both::start().await;
    fs::hard_link(both.at("source"), both.at("linked")).unwrap();
    symlink("source", both.at("link")).unwrap();
    let options = options(|options| options.in_place = true);
    let from = RemotePath::from(both.at("source").as_path());
    for name in ["source", "linked", "link"] {
        let to = RemotePath::from(both.at(name).as_path());
        let copied = copy::copy_within(&both.sftp, &from, &to, &options, &()).await;
        assert!(copied.is_err(), "{name}");
        assert_eq!(fs::read(both.at("source")).unwrap(), b"new content");
    }
    fs::write(both.at("other"), "an old content that is longer").unwrap();
    let to = RemotePath::from(both.at("other").as_path());
    let copied = copy::copy_within(&both.sftp, &from, &to, &options, &()).await;
    assert_eq!(copied.unwrap().files, 1);
    assert_eq!(fs::read(both.at("other")).unwrap(), b"new content");
}
