//! The tree that a sequence starts with, and what has become of it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs::{self, File, Permissions},
    hash::{DefaultHasher, Hash, Hasher},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::Path,
    time::{Duration, SystemTime},
};

use nix::{
    sys::stat::{Mode, SFlag, mknod},
    unistd::Uid,
};

use crate::{
    generate::{FILE_BYTES, NOT_UTF8, SOURCE},
    op::Text,
    outcome::{Time, without_root},
};

/// Most of a file that is compared, in bytes: one can be made to seem larger than any disk.
const MAX_COMPARED_BYTES: u64 = 1024 * 1024;

/// When what is there at first was changed.
const FIRST_TIME: Duration = Duration::from_secs(1_000_000_000);

/// Makes the tree. If `owner` is said, all but two entries belong to them, and those two are root's
/// alone.
pub(crate) fn plant(root: &Path, owner: Option<u32>) {
    let at = |name: &str| root.join(name);
    fs::create_dir(root).unwrap();
    for folder in ["d1", "d1/sub", "d2"] {
        fs::create_dir(at(folder)).unwrap();
    }
    let data: Vec<u8> = (0..FILE_BYTES)
        .map(|at| b"0123456789abcdef\n"[at % 17])
        .collect();
    for (name, data) in [("f1", &data[..]), ("f2", b""), ("d1/x", b"x")] {
        fs::write(at(name), data).unwrap();
    }
    for (name, data) in [(NOT_UTF8, &b"not UTF-8"[..]), (SOURCE, &data)] {
        fs::write(root.join(OsStr::from_bytes(name)), data).unwrap();
    }
    fs::set_permissions(at("f2"), Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(at("f1"), at("h1")).unwrap();
    for (link, target) in [("l1", "f1"), ("l2", "d1"), ("dang", "n1"), ("loop", "loop")] {
        symlink(target, at(link)).unwrap();
    }
    symlink(at("f1"), at("labs")).unwrap();
    mknod(&at("sock"), SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap();
    let time = SystemTime::UNIX_EPOCH + FIRST_TIME;
    File::open(at("f1")).unwrap().set_modified(time).unwrap();
    if let Some(uid) = owner {
        chown(root, Some(uid), Some(uid)).unwrap();
        for entry in walk(root) {
            std::os::unix::fs::lchown(&entry, Some(uid), Some(uid)).unwrap();
        }
        fs::write(at("private"), "private").unwrap();
        fs::create_dir(at("closed")).unwrap();
        for name in ["private", "closed"] {
            chown(at(name), Some(0), Some(0)).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(0o700)).unwrap();
        }
    }
}

/// Removes it, whatever it has become.
pub(crate) fn uproot(root: &Path) {
    if !Uid::effective().is_root() {
        for entry in walk(root) {
            let _ = fs::set_permissions(&entry, Permissions::from_mode(0o700));
        }
    }
    let _ = fs::remove_dir_all(root);
}

/// All there is, by path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<Text, Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    size: u64,
    modified: Time,
    links: u64,
    /// The first path of the same inode.
    same_as: Text,
    /// Target of a link, or a hash of the contents.
    content: Text,
}

impl Snapshot {
    /// Looks at a tree, and follows no link.
    pub(crate) fn of(root: &Path) -> Self {
        let mut first = BTreeMap::new();
        let mut entries = BTreeMap::new();
        let mut paths = walk(root);
        paths.push(root.to_owned());
        paths.sort();
        for path in paths {
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let name = path.strip_prefix(root).unwrap().as_os_str();
            let name = Text(name.as_bytes().to_vec());
            let same_as = first.entry(metadata.ino()).or_insert_with(|| name.clone());
            let entry = Entry {
                kind: letter(metadata.file_type()),
                mode: metadata.mode() & 0o7777,
                owner: (metadata.uid(), metadata.gid()),
                size: metadata.size(),
                modified: Time::of(metadata.mtime()),
                links: metadata.nlink(),
                same_as: same_as.clone(),
                content: content(&path, root, metadata.file_type()),
            };
            entries.insert(name, entry);
        }
        Self(entries)
    }

    /// Forgets the bits that the kernel takes away when the owner changes.
    pub(crate) fn without_special_bits(mut self) -> Self {
        for entry in self.0.values_mut() {
            entry.mode &= 0o777;
        }
        self
    }

    /// What is not the same, a line each.
    pub(crate) fn differences(&self, ours: &Self) -> String {
        let mut text = String::new();
        let names = self.0.keys().chain(ours.0.keys());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names.dedup();
        for name in names {
            let (theirs, ours) = (self.0.get(name), ours.0.get(name));
            if theirs != ours {
                let _ = writeln!(
                    text,
                    "    {name:?}\n      OpenSSH {theirs:?}\n      ours    {ours:?}"
                );
            }
        }
        text
    }
}

fn content(path: &Path, root: &Path, kind: fs::FileType) -> Text {
    if kind.is_symlink() {
        let target = fs::read_link(path).unwrap();
        return Text(without_root(
            target.as_os_str().as_bytes(),
            root.as_os_str().as_bytes(),
        ));
    }
    if !kind.is_file() {
        return Text(Vec::new());
    }
    let mut data = Vec::new();
    let file = File::open(path).unwrap();
    file.take(MAX_COMPARED_BYTES)
        .read_to_end(&mut data)
        .unwrap();
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    Text(format!("{:016x}", hasher.finish()).into_bytes())
}

fn letter(kind: fs::FileType) -> char {
    match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_socket() => 's',
        () if kind.is_file() => '-',
        () => '?',
    }
}

/// Every path below `root`, folders before what is in them.
fn walk(root: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}
