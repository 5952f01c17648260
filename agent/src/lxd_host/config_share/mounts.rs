//! Mounts shared directories of the host by `mount(2)`: those of `agent-mounts.json` at the start, and those
//! that are added later.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount as nix_mount, umount2};
use serde::Deserialize;

use super::read_if_there;
use crate::system::{
    mount_table,
    root::{Root, split},
};

const FILE: &str = "agent-mounts.json";

/// The mount table of this thread: in tests, a thread has its own mount namespace.
const TABLE: &str = "/proc/thread-self/mounts";

/// The file systems of shared directories.
pub(super) const VIRTIOFS: &str = "virtiofs";
const PLAN9: &str = "9p";

/// Prefixes of 9p options that are dropped for virtiofs.
const PLAN9_OPTIONS: [&str; 2] = ["trans=", "msize="];

/// Options of `mount(8)` that are flags of `mount(2)`. Other options are passed to the file system.
const FLAGS: [(&str, MsFlags); 10] = [
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
];

/// Options without effect.
const DEFAULTS: [&str; 3] = ["", "rw", "defaults"];

/// A shared directory and its mount point.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Mount {
    /// The tag of the device.
    pub(super) source: String,
    /// The path in the guest.
    pub(super) target: PathBuf,
    #[serde(default)]
    pub(super) fstype: String,
    pub(super) options: Option<Vec<String>>,
}

/// An error of mounting a shared directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    /// The file system is not supported.
    #[error("{0:?} is neither virtiofs nor 9p")]
    Kind(String),
    /// The path is not below the root.
    #[error("{0} is not a mount point for a share")]
    Target(PathBuf),
    /// The mount point cannot be created.
    #[error("cannot create the mount point {0}")]
    Folder(PathBuf, #[source] io::Error),
    /// The error of `mount(2)`.
    #[error("mount: {0}")]
    Mount(#[source] io::Error),
}

impl MountError {
    /// Whether a retry would fail, too.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Kind(_) | Self::Target(_))
    }
}

/// The result of mounting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mounted {
    /// Mounted, with this file system.
    As(&'static str),
    /// The mount point is in use already.
    Already,
}

/// Mounts the shared directories of `agent-mounts.json`. Errors are logged.
pub(super) fn apply(share: &Path, root: &Path) {
    let path = share.join(FILE);
    let Some(text) = read_if_there(&path) else {
        return;
    };
    let mounts: Vec<Mount> = match serde_json::from_slice(&text) {
        Ok(mounts) => mounts,
        Err(error) => {
            tracing::error!(?path, %error, "invalid list of shares");
            return;
        }
    };
    for share in mounts {
        let Mount { source, target, .. } = &share;
        match mount(root, &share) {
            Ok(how) => tracing::info!(source, ?target, ?how, "mounted a share of the host"),
            Err(error) => {
                tracing::error!(source, ?target, %error, "cannot mount a share of the host")
            }
        }
    }
}

/// Creates the mount point and mounts a shared directory. Blocks while the host does not respond.
///
/// # Errors
///
/// [`MountError`].
pub(super) fn mount(root: &Path, share: &Mount) -> Result<Mounted, MountError> {
    mount_as(root, share, kinds(&share.fstype)?)
}

fn kinds(fstype: &str) -> Result<&'static [&'static str], MountError> {
    match fstype {
        VIRTIOFS => Ok(&[VIRTIOFS]),
        // Hosts that support both name 9p.
        PLAN9 => Ok(&[VIRTIOFS, PLAN9]),
        _ => Err(MountError::Kind(fstype.to_owned())),
    }
}

/// Tries one file system after the other.
fn mount_as(root: &Path, share: &Mount, kinds: &[&'static str]) -> Result<Mounted, MountError> {
    let mount_point = MountPoint::make(root, &share.target)?;
    if mount_point.is_mounted() {
        return Ok(Mounted::Already);
    }
    let mut result = Err(MountError::Kind(share.fstype.clone()));
    for kind in kinds {
        let (flags, data) = options(kind, share.options.as_deref().unwrap_or_default());
        let done = nix_mount(
            Some(share.source.as_str()),
            &mount_point.handle(),
            Some(*kind),
            flags,
            Some(data.as_str()),
        );
        match done {
            Ok(()) => return Ok(Mounted::As(kind)),
            Err(error) => result = Err(MountError::Mount(error.into())),
        }
    }
    result
}

fn options(kind: &str, words: &[String]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for word in words.iter().flat_map(|words| words.split(',')) {
        let is_plan9 = PLAN9_OPTIONS.iter().any(|option| word.starts_with(option));
        if DEFAULTS.contains(&word) || (is_plan9 && kind != PLAN9) {
            continue;
        }
        match FLAGS.iter().find(|(name, _)| *name == word) {
            Some((_, flag)) => flags |= *flag,
            None => data.push(word),
        }
    }
    (flags, data.join(","))
}

/// Unmounts all mounts of the shared directory `source`, and any shared directory at `target`, lazily. Returns
/// their number.
///
/// # Errors
///
/// The last error of `umount2(2)`.
pub(super) fn unmount(root: &Path, source: &str, target: &Path) -> io::Result<usize> {
    unmount_kinds(root, source, target, &[VIRTIOFS, PLAN9])
}

fn unmount_kinds(root: &Path, source: &str, target: &Path, kinds: &[&str]) -> io::Result<usize> {
    let target = below(root, target);
    let table = fs::read(TABLE)?;
    let shares: Vec<_> = mount_table::parse(&table)
        .filter(|mount| kinds.contains(&mount.kind.as_str()))
        .filter(|mount| mount.source == source || Some(&mount.mountpoint) == target.as_ref())
        .collect();
    let mut result = Ok(shares.len());
    for share in shares.iter().rev() {
        if let Err(error) = unmount_at(&share.mountpoint) {
            result = Err(error);
        }
    }
    result
}

/// Unmounts a mount point. Its parent directory is opened first, so that a user cannot redirect the path by
/// renaming directories.
fn unmount_at(mountpoint: &Path) -> io::Result<()> {
    let (folder, name) = split(mountpoint)?;
    let folder = Root::open(Path::new("/"))?.folder(folder)?;
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    umount2(&handle(&folder).join(name), flags)?;
    Ok(())
}

/// A path to an open directory (`proc_pid_fd(5)`).
fn handle(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", folder.as_raw_fd()))
}

/// A path of the guest below `root`. `None` for the root itself and for a path with `..`.
fn below(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    let is_root = names.is_empty();
    (!is_root).then(|| {
        names
            .iter()
            .fold(root.to_owned(), |path, name| path.join(name))
    })
}

/// An open directory to mount on. A later change of its path has no effect.
struct MountPoint(OwnedFd);

impl MountPoint {
    fn make(root: &Path, target: &Path) -> Result<Self, MountError> {
        let path = below(root, target).ok_or_else(|| MountError::Target(target.to_owned()))?;
        let folder = Root::open(root).and_then(|root| root.make_folder(target));
        folder
            .map(Self)
            .map_err(|error| MountError::Folder(path, error))
    }

    fn handle(&self) -> PathBuf {
        handle(&self.0)
    }

    fn is_mounted(&self) -> bool {
        let (Ok(path), Ok(table)) = (fs::read_link(self.handle()), fs::read(TABLE)) else {
            return false;
        };
        mount_table::parse(&table).any(|mount| mount.mountpoint == path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use super::*;
    use crate::lxd_host::config_share::alone::with_own_mounts;

    fn share(target: &str) -> Mount {
        Mount {
            source: "lxd_data".to_owned(),
            target: target.into(),
            fstype: PLAN9.to_owned(),
            options: Some(vec!["size=1m,ro".to_owned(), "nosuid".to_owned()]),
        }
    }

    fn mounts_here(path: &Path) -> Vec<String> {
        let table = fs::read(TABLE).unwrap();
        let here = mount_table::parse(&table).filter(|mount| mount.mountpoint == path);
        here.map(|mount| mount.kind).collect()
    }

    #[test]
    fn a_share_is_mounted_once_and_unmounted() {
        with_own_mounts("mount-once", |root| {
            let mount = || mount_as(root, &share("/mnt/data"), &["nothing", "tmpfs"]);
            assert_eq!(mount().unwrap(), Mounted::As("tmpfs"));
            let path = root.join("mnt/data");
            assert_eq!(mounts_here(&path), ["tmpfs"]);
            let refused = fs::write(path.join("file"), "").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
            assert_eq!(mount().unwrap(), Mounted::Already);
            let unmount = |source, target: &str| {
                unmount_kinds(root, source, Path::new(target), &["tmpfs"]).unwrap()
            };
            assert_eq!(unmount("other", "/mnt"), 0);
            assert_eq!(unmount("other", "/mnt/data"), 1);
            assert_eq!(mounts_here(&path), [] as [&str; 0]);
            mount().unwrap();
            assert_eq!(unmount("lxd_data", "/elsewhere"), 1);
            assert_eq!(mounts_here(&path), [] as [&str; 0]);
        });
    }

    #[test]
    fn a_share_is_not_mounted_through_a_users_symlink() {
        with_own_mounts("mount-link", |root| {
            let [elsewhere, home] = ["elsewhere", "home"].map(|name| root.join(name));
            fs::create_dir(&elsewhere).unwrap();
            fs::create_dir(&home).unwrap();
            symlink("/elsewhere", home.join("data")).unwrap();
            lchown(home.join("data"), Some(1000), None).unwrap();
            let error = mount_as(root, &share("/home/data"), &["tmpfs"]).unwrap_err();
            assert!(matches!(error, MountError::Folder(..)), "{error}");
            assert_eq!(mounts_here(&elsewhere), [] as [&str; 0]);
        });
    }

    #[test]
    fn mounting_an_unknown_file_system_is_an_error() {
        with_own_mounts("mount-unknown", |root| {
            let error = mount_as(root, &share("/mnt"), &["nothing"]).unwrap_err();
            assert!(matches!(error, MountError::Mount(_)), "{error}");
        });
    }

    #[test]
    fn a_share_is_not_mounted_on_or_outside_of_the_root() {
        let root = std::env::temp_dir();
        for target in ["", "/", ".", "/..", "/mnt/../etc", "../etc"] {
            let error = mount_as(&root, &share(target), &["tmpfs"]).unwrap_err();
            assert!(matches!(error, MountError::Target(_)), "{target}: {error}");
        }
    }

    #[test]
    fn only_virtiofs_and_9p_are_mounted() {
        assert_eq!(kinds("9p").unwrap(), ["virtiofs", "9p"]);
        assert_eq!(kinds("virtiofs").unwrap(), ["virtiofs"]);
        for kind in ["", "ext4", "nfs"] {
            let error = kinds(kind).unwrap_err();
            assert!(matches!(error, MountError::Kind(_)), "{kind}: {error}");
        }
    }

    #[test]
    fn mount_options_are_split_into_flags_and_data() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let usual = words(&["trans=virtio,msize=33554432", "ro"]);
        let read_only = MsFlags::MS_RDONLY;
        let data = "trans=virtio,msize=33554432".to_owned();
        assert_eq!(options(PLAN9, &usual), (read_only, data));
        assert_eq!(options(VIRTIOFS, &usual), (read_only, String::new()));
        let others = words(&["rw,noatime,dax=always"]);
        let data = "dax=always".to_owned();
        assert_eq!(options(VIRTIOFS, &others), (MsFlags::MS_NOATIME, data));
    }

    #[test]
    fn the_list_of_shares_is_parsed() {
        let text = r#"[
            {"source": "lxd_a", "target": "/a", "fstype": "9p", "options": ["ro"]},
            {"source": "incus_b", "target": "b", "fstype": "virtiofs", "options": null, "more": 1}
        ]"#;
        let mounts: Vec<Mount> = serde_json::from_str(text).unwrap();
        assert_eq!(mounts[0].options, Some(vec!["ro".to_owned()]));
        assert_eq!(mounts[1].options, None);
        assert_eq!(below(Path::new("/"), &mounts[1].target), Some("/b".into()));
    }
}
