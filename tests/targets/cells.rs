//! A target of each kind, in a folder of its own, and what became of it.

use std::{
    cell::RefCell,
    ffi::CStr,
    fs::{self, File, OpenOptions, Permissions},
    io::Read,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::{
    libc::O_NONBLOCK,
    mount::{MntFlags, MsFlags, mount as mount_at, umount2},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::mkfifo,
};

/// Kinds of targets.
pub(crate) const KINDS: &[&str] = &[
    "absent",
    "file",
    "file of another owner",
    "file that others may write",
    "read-only file",
    "file with two names",
    "file in a closed folder",
    "link to a file",
    "dangling link",
    "link to a directory",
    "directory",
    "device",
    "pipe",
    "socket",
    "bind-mounted file",
    "file of /proc/sys",
    "file on a full disk",
    "file with holes on a full disk",
];

/// Owner and group of a file that is not the user's.
const FOREIGN: u32 = 1;

/// A file of the UTS namespace's own.
const SYSCTL: &str = "/proc/sys/kernel/hostname";

const OLD: &str = "old\n";
const NEW: &str = "new\n";

/// Sizes on a disk of 1 MiB, of which not all is for files.
const DISK: &str = "size=1m,mode=777";
const BIG_OLD: usize = 600 * 1024;
const BIG_NEW: usize = 700 * 1024;

/// One target.
pub(crate) struct Cell {
    pub(crate) folder: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) source: PathBuf,
    /// A folder with nothing in it but a file of the target's name.
    pub(crate) tree: PathBuf,
    /// For temporary files of the command: an editor's draft is kept when the edit fails.
    pub(crate) temporary: PathBuf,
    new: Vec<u8>,
    inode: Option<u64>,
    mounts: Vec<PathBuf>,
    pipe: RefCell<Option<File>>,
    _socket: Option<UnixListener>,
}

pub(crate) fn mount(at: &Path, data: &str) {
    let kind = "tmpfs";
    mount_at(Some(kind), at, Some(kind), MsFlags::empty(), Some(data)).expect("this needs root");
}

pub(crate) fn unmount(at: &Path) {
    umount2(at, MntFlags::MNT_DETACH).unwrap();
}

impl Cell {
    pub(crate) fn new(parent: &Path, kind: &str, user: u32) -> Self {
        let base = parent.join("cell");
        let folder = base.join("d");
        fs::create_dir_all(&folder).unwrap();
        let temporary = base.join("tmp");
        fs::create_dir(&temporary).unwrap();
        fs::set_permissions(&temporary, Permissions::from_mode(0o777)).unwrap();
        let mut cell = Self {
            target: folder.join("target"),
            source: base.join("source"),
            tree: base.join("tree"),
            temporary,
            folder,
            new: NEW.into(),
            inode: None,
            mounts: Vec::new(),
            pipe: RefCell::default(),
            _socket: None,
        };
        if kind.ends_with("on a full disk") {
            cell.new = vec![b'n'; BIG_NEW];
            mount(&cell.folder, DISK);
            cell.mounts.push(cell.folder.clone());
        }
        chown(&cell.folder, Some(user), Some(user)).unwrap();
        cell.make(kind, user);
        let name = cell.target.file_name().unwrap().to_owned();
        fs::create_dir(&cell.tree).unwrap();
        for source in [cell.source.clone(), cell.tree.join(name)] {
            fs::write(&source, &cell.new).unwrap();
            fs::set_permissions(&source, Permissions::from_mode(0o644)).unwrap();
        }
        let there = fs::metadata(&cell.target);
        cell.inode = there.ok().map(|there| there.ino());
        cell
    }

    fn make(&mut self, kind: &str, user: u32) {
        let target = self.target.clone();
        let end = self.folder.join("end");
        let file = |path: &Path, owner: u32, mode: u32| {
            fs::write(path, OLD).unwrap();
            let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            let written = OpenOptions::new().write(true).open(path).unwrap();
            written.set_modified(long_ago).unwrap();
            chown(path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        match kind {
            "absent" => {}
            "file" => file(&target, user, 0o640),
            "file of another owner" => file(&target, FOREIGN, 0o640),
            "file that others may write" => file(&target, FOREIGN, 0o666),
            "read-only file" => file(&target, user, 0o440),
            "file with two names" => {
                file(&target, user, 0o640);
                fs::hard_link(&target, end).unwrap();
            }
            "file in a closed folder" => {
                file(&target, user, 0o640);
                chown(&self.folder, Some(FOREIGN), Some(FOREIGN)).unwrap();
            }
            "link to a file" => {
                file(&end, user, 0o640);
                symlink("end", &target).unwrap();
            }
            "dangling link" => symlink("end", &target).unwrap(),
            "link to a directory" => {
                fs::create_dir(&end).unwrap();
                chown(&end, Some(user), Some(user)).unwrap();
                symlink("end", &target).unwrap();
            }
            "directory" => {
                fs::create_dir(&target).unwrap();
                chown(&target, Some(user), Some(user)).unwrap();
            }
            // That of /dev/null.
            "device" => {
                mknod(&target, SFlag::S_IFCHR, Mode::all(), makedev(1, 3)).unwrap();
                fs::set_permissions(&target, Permissions::from_mode(0o666)).unwrap();
            }
            "pipe" => {
                mkfifo(&target, Mode::all()).unwrap();
                fs::set_permissions(&target, Permissions::from_mode(0o666)).unwrap();
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(O_NONBLOCK);
                *self.pipe.borrow_mut() = Some(options.open(&target).unwrap());
            }
            "socket" => {
                self._socket = Some(UnixListener::bind(&target).unwrap());
                fs::set_permissions(&target, Permissions::from_mode(0o666)).unwrap();
            }
            "bind-mounted file" => {
                file(&target, user, 0o640);
                file(&end, user, 0o640);
                let none: Option<&CStr> = None;
                mount_at(Some(&end), &target, none, MsFlags::MS_BIND, none).unwrap();
                self.mounts.push(target);
            }
            "file of /proc/sys" => {
                self.folder = Path::new(SYSCTL).parent().unwrap().to_owned();
                self.target = SYSCTL.into();
                fs::write(SYSCTL, OLD).unwrap();
            }
            "file on a full disk" => {
                file(&target, user, 0o640);
                fs::write(&target, vec![b'o'; BIG_OLD]).unwrap();
            }
            // To empty it gives nothing back.
            "file with holes on a full disk" => {
                file(&target, user, 0o640);
                let long = u64::try_from(BIG_OLD).unwrap();
                let holes = OpenOptions::new().write(true).open(&target).unwrap();
                holes.set_len(long).unwrap();
                fs::write(self.folder.join("other"), vec![b'x'; BIG_OLD]).unwrap();
            }
            other => panic!("{other}"),
        }
    }

    /// What has become of the target.
    pub(crate) fn outcome(&self) -> String {
        let mut outcome = self.describe(&self.target);
        let parts = fs::read_dir(&self.folder).unwrap().flatten();
        let left = parts.filter(|entry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.starts_with(b".") && name.ends_with(b".part")
        });
        if left.count() > 0 {
            outcome.push_str(", and a part is left");
        }
        outcome
    }

    fn describe(&self, path: &Path) -> String {
        let Ok(there) = fs::symlink_metadata(path) else {
            return "nothing".to_owned();
        };
        match there.file_type() {
            kind if kind.is_symlink() => {
                let end = path.parent().unwrap().join(fs::read_link(path).unwrap());
                format!("link to {}", self.describe(&end))
            }
            kind if kind.is_dir() => match fs::read_dir(path).unwrap().count() {
                0 => "directory".to_owned(),
                _ => "directory with the new file".to_owned(),
            },
            kind if kind.is_fifo() => {
                if self.came() {
                    "pipe through which the new content came".to_owned()
                } else {
                    "pipe".to_owned()
                }
            }
            kind if kind.is_socket() => "socket".to_owned(),
            kind if kind.is_char_device() => "device".to_owned(),
            _ => self.describe_file(path, &there),
        }
    }

    fn describe_file(&self, path: &Path, there: &fs::Metadata) -> String {
        let content = match fs::read(path).unwrap() {
            content if content == self.new => "new content",
            content if content == OLD.as_bytes() => "old content",
            content if content.first() == Some(&b'o') => "old content",
            _ => "broken content",
        };
        let file = match self.inode {
            Some(inode) if inode == there.ino() => "the same file",
            _ => "a new file",
        };
        let owner = match there.uid() {
            0 => "root",
            FOREIGN => "the other owner",
            _ => "nobody",
        };
        let mode = there.mode() & 0o7777;
        format!("{content}, {file}, {mode:o} of {owner}")
    }

    fn came(&self) -> bool {
        let mut came = vec![0; self.new.len() + 1];
        let read = self
            .pipe
            .borrow_mut()
            .as_mut()
            .map(|pipe| pipe.read(&mut came));
        matches!(read, Some(Ok(count)) if came[..count] == self.new)
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        for mounted in self.mounts.iter().rev() {
            unmount(mounted);
        }
        let _ = fs::remove_dir_all(self.tree.parent().unwrap());
    }
}
