//! Trees to the guest and back: everything arrives as it was.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, SystemTime},
};

use harness::{TestAgent, TestFolder};
use nix::{
    sys::stat::{Mode, UtimensatFlags, utimensat},
    sys::time::TimeSpec,
    unistd::mkfifo,
};
use vsock_agent_client::{
    Client, RemotePath, Security, Sftp,
    copy::{self, CopyError, CopyEvent, CopyObserver, CopyOptions, SkipReason},
};

async fn start() -> (TestAgent, TestFolder, Sftp) {
    let agent = TestAgent::start();
    let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
    let sftp = client.sftp().await.unwrap();
    (agent, TestFolder::new("copy"), sftp)
}

fn recursive() -> CopyOptions {
    let mut options = CopyOptions::default();
    options.recursive = true;
    options
}

/// What is at each path below `root`: mode, whole seconds of its time, content or target.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = match metadata.file_type() {
            kind if kind.is_symlink() => fs::read_link(&path)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec(),
            kind if kind.is_dir() => {
                waiting.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                Vec::new()
            }
            _ => fs::read(&path).unwrap(),
        };
        let name = path.strip_prefix(root).unwrap().to_owned();
        found.insert(name, (metadata.mode(), metadata.mtime(), content));
    }
    found
}

fn age(path: &Path, seconds: i64) {
    let time = TimeSpec::new(seconds, 0);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

/// A tree with everything that is hard about names, modes and kinds.
fn corpus(root: &Path) {
    let deep = root.join("a/b/c/d");
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    let names: Vec<Vec<u8>> = vec![
        b"-rf".to_vec(),
        b"new\nline".to_vec(),
        b"\xff\xfe not text".to_vec(),
        b"\x1b[31mred".to_vec(),
        b" spaces ".to_vec(),
        "grün 日本".into(),
        vec![b'n'; 255],
        b".hidden".to_vec(),
        b"*?[x]".to_vec(),
        b"back\\slash".to_vec(),
    ];
    for (number, name) in names.iter().enumerate() {
        let path = root.join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        let mode = [0o644, 0o600, 0o755, 0o440][number % 4];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        age(&path, 1_000_000_000 + i64::try_from(number).unwrap());
    }
    for bytes in [0, 1, 65_535, 65_536, 65_537, 700_001] {
        let content: Vec<u8> = (0..bytes)
            .map(|n: u32| n.wrapping_mul(31).to_le_bytes()[1])
            .collect();
        fs::write(deep.join(format!("bytes-{bytes}")), content).unwrap();
    }
    for number in 0..300 {
        fs::write(root.join("a").join(format!("small-{number}")), [7; 100]).unwrap();
    }
    symlink("../nowhere", root.join("a/dangling")).unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    age(&root.join("absolute"), 1_234_567_890);
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o555)).unwrap();
    for directory in ["a/b/c/d", "a/b/c", "a/b", "a", "empty", ""] {
        age(&root.join(directory), 1_100_000_000);
    }
}

/// Times of links cannot be set on a server without `lsetstat`.
fn without_link_times(
    mut tree: BTreeMap<PathBuf, (u32, i64, Vec<u8>)>,
) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    for (mode, time, _) in tree.values_mut() {
        if *mode & 0o170_000 == 0o120_000 {
            *time = 0;
        }
    }
    tree
}

#[tokio::test]
async fn tree_survives_push_and_pull() {
    let (_agent, folder, sftp) = start().await;
    let [here, there, back] = ["here", "there", "back"].map(|name| folder.path().join(name));
    fs::create_dir(&here).unwrap();
    corpus(&here);
    let remote = RemotePath::from(there.as_path());
    let pushed = copy::push(
        &sftp,
        std::slice::from_ref(&here),
        &remote,
        &recursive(),
        &(),
    )
    .await
    .unwrap();
    assert_eq!((pushed.files, pushed.links, pushed.failed), (316, 2, 0));
    assert_eq!(
        without_link_times(tree(&there)),
        without_link_times(tree(&here))
    );
    let pulled = copy::pull(&sftp, &[remote], &back, &recursive(), &())
        .await
        .unwrap();
    assert_eq!(pulled.failed, 0);
    assert_eq!(tree(&back), tree(&there));
    for root in [here, there, back] {
        fs::set_permissions(root.join("a/b/c/d"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[tokio::test]
async fn copy_to_an_existing_directory_goes_into_it() {
    let (_agent, folder, sftp) = start().await;
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    fs::create_dir(&here).unwrap();
    fs::create_dir_all(there.join("here")).unwrap();
    fs::write(here.join("file"), "new").unwrap();
    fs::write(there.join("here/file"), "old").unwrap();
    fs::write(there.join("here/other"), "stays").unwrap();
    let remote = RemotePath::from(there.as_path());
    copy::push(&sftp, &[here], &remote, &recursive(), &())
        .await
        .unwrap();
    assert_eq!(fs::read(there.join("here/file")).unwrap(), b"new");
    assert_eq!(fs::read(there.join("here/other")).unwrap(), b"stays");
    assert_eq!(fs::read_dir(there.join("here")).unwrap().count(), 2);
}

/// Remembers what was skipped and what failed.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<(Vec<u8>, &'static str)>>);

impl CopyObserver for Seen {
    fn observe(&self, event: CopyEvent<'_>) {
        let (path, what) = match event {
            CopyEvent::Skipped {
                path,
                reason: SkipReason::Special,
            } => (path, "special"),
            CopyEvent::Skipped { path, .. } => (path, "skipped"),
            CopyEvent::Failed { path, .. } => (path, "failed"),
            _ => return,
        };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
        self.0.lock().unwrap().push((name.to_vec(), what));
    }
}

impl Seen {
    fn sorted(self) -> Vec<(Vec<u8>, &'static str)> {
        let mut seen = self.0.into_inner().unwrap();
        seen.sort();
        seen
    }
}

#[tokio::test]
async fn special_files_are_reported_and_failures_do_not_stop_the_copy() {
    let (_agent, folder, sftp) = start().await;
    let [here, there, back] = ["here", "there", "back"].map(|name| folder.path().join(name));
    fs::create_dir(&here).unwrap();
    mkfifo(&here.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::write(here.join("in-the-way"), "x").unwrap();
    fs::write(here.join("last"), "y").unwrap();
    fs::create_dir_all(there.join("in-the-way")).unwrap();
    fs::create_dir_all(back.join("in-the-way")).unwrap();
    let seen = Seen::default();
    let options = recursive();
    let into = RemotePath::from(there.as_path());
    // To the directory itself: what is copied are its entries.
    let pushed = copy::push(&sftp, &[here.join(".")], &into, &options, &seen).await;
    let pushed = pushed.unwrap();
    assert_eq!((pushed.skipped, pushed.failed), (1, 1));
    assert_eq!(
        seen.sorted(),
        [
            (b"in-the-way".to_vec(), "failed"),
            (b"pipe".to_vec(), "special")
        ]
    );
    let seen = Seen::default();
    let from = RemotePath::from(here.join("pipe").as_path());
    let alone = copy::pull(&sftp, &[from], &back, &options, &seen).await;
    assert!(matches!(alone, Err(CopyError::Special)), "{alone:?}");
    assert_eq!(fs::read(there.join("last")).unwrap(), b"y");
    assert_eq!(fs::read_dir(&there).unwrap().count(), 2);
}

#[tokio::test]
async fn sparse_file_stays_sparse_after_a_copy() {
    let (_agent, folder, sftp) = start().await;
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    let mut file = File::create(&here).unwrap();
    file.set_len(256 * 1024 * 1024).unwrap();
    file.write_all(&[1; 100_000]).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[2; 100_000], 99_000_000).unwrap();
    drop(file);
    let remote = RemotePath::from(there.as_path());
    copy::push(
        &sftp,
        std::slice::from_ref(&here),
        &remote,
        &CopyOptions::default(),
        &(),
    )
    .await
    .unwrap();
    let (original, copied) = (here.metadata().unwrap(), there.metadata().unwrap());
    assert_eq!(copied.len(), original.len());
    assert!(
        copied.blocks() <= original.blocks() + 64,
        "{}",
        copied.blocks()
    );
    assert!(fs::read(&here).unwrap() == fs::read(&there).unwrap());
    if sftp.has_extension("holes@vsock-agent") {
        let back = folder.path().join("back");
        copy::pull(&sftp, &[remote], &back, &CopyOptions::default(), &())
            .await
            .unwrap();
        assert!(back.metadata().unwrap().blocks() <= original.blocks() + 64);
        assert!(fs::read(&back).unwrap() == fs::read(&there).unwrap());
    }
}

#[tokio::test]
async fn resume_skips_complete_files() {
    let (_agent, folder, sftp) = start().await;
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    fs::create_dir(&here).unwrap();
    for name in ["same", "other-time", "other-size"] {
        fs::write(here.join(name), "content").unwrap();
    }
    let remote = RemotePath::from(there.as_path());
    let mut options = recursive();
    copy::push(&sftp, std::slice::from_ref(&here), &remote, &options, &())
        .await
        .unwrap();
    let file = File::options()
        .write(true)
        .open(there.join("other-time"))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60))
        .unwrap();
    fs::write(here.join("other-size"), "more content").unwrap();
    options.resume = true;
    let source = here.join(".");
    let pushed = copy::push(&sftp, &[source], &remote, &options, &())
        .await
        .unwrap();
    assert_eq!((pushed.skipped, pushed.files), (1, 2));
    // The destination itself is not what was copied.
    let below = |root| tree(root).into_iter().skip(1).collect::<Vec<_>>();
    assert_eq!(below(&there), below(&here));
    let back = copy::pull(&sftp, &[remote.join(".")], &here, &options, &())
        .await
        .unwrap();
    assert_eq!((back.skipped, back.files), (3, 0));
}

#[tokio::test]
async fn invalid_destination_is_refused_before_writing() {
    let (_agent, folder, sftp) = start().await;
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let missing = folder.path().join("missing");
    let two = [file.clone(), file.clone()];
    let options = CopyOptions::default();
    let remote = RemotePath::from(missing.as_path());
    let several = copy::push(&sftp, &two, &remote, &options, &()).await;
    assert!(
        matches!(several, Err(CopyError::NotADirectory)),
        "{several:?}"
    );
    let folder_alone = copy::push(&sftp, &[folder.path().to_owned()], &remote, &options, &()).await;
    assert!(
        matches!(folder_alone, Err(CopyError::IsADirectory)),
        "{folder_alone:?}"
    );
    let sources = [RemotePath::from(folder.path())];
    let folder_alone = copy::pull(&sftp, &sources, &missing, &options, &()).await;
    assert!(
        matches!(folder_alone, Err(CopyError::IsADirectory)),
        "{folder_alone:?}"
    );
    assert!(!missing.exists());
}

#[tokio::test]
async fn copy_limits_end_the_copy() {
    let (_agent, folder, sftp) = start().await;
    let here = folder.path().join("here");
    fs::create_dir_all(here.join("a/b/c")).unwrap();
    for number in 0..20 {
        fs::write(here.join(format!("{number}")), [0; 1000]).unwrap();
    }
    let source = RemotePath::from(here.as_path());
    let limited = async |change: fn(&mut CopyOptions), name: &str| {
        let mut options = recursive();
        change(&mut options);
        let to = folder.path().join(name);
        copy::pull(&sftp, std::slice::from_ref(&source), &to, &options, &()).await
    };
    for (change, name) in [
        (
            (|options| options.max_entries = 10) as fn(&mut CopyOptions),
            "entries",
        ),
        (|options| options.max_bytes = Some(5_000), "bytes"),
        (|options| options.max_depth = 2, "depth"),
    ] {
        let ended = limited(change, name).await;
        assert!(
            matches!(ended, Err(CopyError::Limit { .. })),
            "{name}: {ended:?}"
        );
    }
    limited(|options| options.max_depth = 4, "enough")
        .await
        .unwrap();
}

#[tokio::test]
async fn total_limit_holds_for_many_small_files() {
    stays_below_the_limit(20, 1_000).await;
}

#[tokio::test]
async fn total_limit_holds_for_large_files() {
    stays_below_the_limit(5, 300_000).await;
}

/// Copies so many files of that size with a limit of a byte less than they need.
async fn stays_below_the_limit(count: u64, size: u64) {
    let (_agent, folder, sftp) = start().await;
    let here = folder.path().join("here");
    fs::create_dir(&here).unwrap();
    for number in 0..count {
        fs::write(
            here.join(format!("{number}")),
            vec![0; size.try_into().unwrap()],
        )
        .unwrap();
    }
    let mut options = recursive();
    options.max_bytes = Some(count * size - 1);
    let there = folder.path().join("there");
    let to = RemotePath::from(there.as_path());
    let pushed = copy::push(&sftp, std::slice::from_ref(&here), &to, &options, &()).await;
    let back = folder.path().join("back");
    let from = RemotePath::from(here.as_path());
    let pulled = copy::pull(&sftp, &[from], &back, &options, &()).await;
    for (copied, to) in [(pushed, there), (pulled, back)] {
        assert!(matches!(copied, Err(CopyError::Limit { .. })), "{copied:?}");
        let files = fs::read_dir(to).unwrap();
        let bytes: u64 = files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes < count * size, "{bytes}");
    }
    options.max_bytes = Some(count * size);
    let pushed = copy::push(&sftp, &[here], &to, &options, &()).await;
    assert_eq!(pushed.unwrap().files, count);
}

#[tokio::test]
async fn directory_beyond_the_depth_limit_is_not_created() {
    let (_agent, folder, sftp) = start().await;
    let here = folder.path().join("here");
    fs::create_dir_all(here.join("a/b/c")).unwrap();
    let there = folder.path().join("there");
    let mut options = recursive();
    options.max_depth = 2;
    let to = RemotePath::from(there.as_path());
    let ended = copy::push(&sftp, &[here], &to, &options, &()).await;
    assert!(matches!(ended, Err(CopyError::Limit { .. })), "{ended:?}");
    assert!(there.join("a").is_dir());
    assert!(!there.join("a/b").exists());
}

#[tokio::test]
async fn exact_copy_of_a_tree_is_repeatable() {
    let (_agent, folder, sftp) = start().await;
    let [here, there, back] = ["here", "there", "back"].map(|name| folder.path().join(name));
    fs::create_dir_all(here.join("below")).unwrap();
    fs::write(here.join("below/file"), "text").unwrap();
    let mut options = recursive();
    options.exact = true;
    let remote = RemotePath::from(there.as_path());
    for _ in 0..2 {
        let sources = [here.clone()];
        copy::push(&sftp, &sources, &remote, &options, &())
            .await
            .unwrap();
        assert_eq!(tree(&there), tree(&here));
        let sources = [remote.clone()];
        copy::pull(&sftp, &sources, &back, &options, &())
            .await
            .unwrap();
        assert_eq!(tree(&back), tree(&here));
    }
    // A file does not go into a directory either.
    let file = here.join("below/file");
    let pushed = copy::push(&sftp, &[file], &remote, &options, &()).await;
    assert!(matches!(pushed, Err(CopyError::InTheWay)), "{pushed:?}");
    let two = [here.clone(), here];
    let pushed = copy::push(&sftp, &two, &remote, &options, &()).await;
    assert!(
        matches!(pushed, Err(CopyError::NotADirectory)),
        "{pushed:?}"
    );
}

#[tokio::test]
async fn copy_of_a_tree_to_a_new_name_with_trailing_slash() {
    let (_agent, folder, sftp) = start().await;
    let [here, there, back] = ["here", "there/", "back/"].map(|name| folder.path().join(name));
    fs::create_dir(&here).unwrap();
    fs::write(here.join("file"), "text").unwrap();
    let remote = RemotePath::from(there.as_path());
    let sources = [here.clone()];
    copy::push(&sftp, &sources, &remote, &recursive(), &())
        .await
        .unwrap();
    assert_eq!(tree(&there), tree(&here));
    let sources = [remote];
    copy::pull(&sftp, &sources, &back, &recursive(), &())
        .await
        .unwrap();
    assert_eq!(tree(&back), tree(&here));
    let missing = RemotePath::from(folder.path().join("missing/").as_path());
    let file = here.join("file");
    let pushed = copy::push(&sftp, &[file], &missing, &recursive(), &()).await;
    assert!(
        matches!(pushed, Err(CopyError::NotADirectory)),
        "{pushed:?}"
    );
}

#[tokio::test]
async fn tree_with_more_than_256_levels_is_copied() {
    let (_agent, folder, sftp) = start().await;
    let [here, there, back] = ["here", "there", "back"].map(|name| folder.path().join(name));
    let deep = vec!["d"; 300].join("/");
    fs::create_dir_all(here.join(&deep)).unwrap();
    fs::write(here.join(&deep).join("file"), "text").unwrap();
    let remote = RemotePath::from(there.as_path());
    copy::push(&sftp, &[here], &remote, &recursive(), &())
        .await
        .unwrap();
    copy::pull(&sftp, &[remote], &back, &recursive(), &())
        .await
        .unwrap();
    assert_eq!(fs::read(back.join(&deep).join("file")).unwrap(), b"text");
}
