//! What is mounted: `/proc/self/mounts`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

/// Kinds that hold no data of the guest, as LXD's agent passes them over.
const UNINTERESTING: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fuse.lxcfs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

/// Folders whose mounts, and those below, are nobody's business.
const PRIVATE: &[&str] = &["/dev", "/proc", "/sys", "/var/lib/docker"];

/// Kinds that the kernel answers for by itself. Any other may have to ask another machine or
/// process, which may never answer.
const LOCAL: &[&str] = &[
    "bcachefs", "btrfs", "efivarfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus",
    "jfs", "minix", "nilfs2", "ntfs3", "ramfs", "reiserfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// What is mounted: a device, or a word.
    pub(super) source: String,
    /// Where. May not be UTF-8.
    pub(super) mountpoint: PathBuf,
    /// The kind of file system, such as `ext4`.
    pub(super) kind: String,
    pub(super) is_read_only: bool,
}

impl Mount {
    /// Whether asking for its size cannot hang.
    pub(super) fn is_local(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }

    fn is_interesting(&self) -> bool {
        let is_private = PRIVATE
            .iter()
            .any(|folder| self.mountpoint.starts_with(folder));
        !is_private && !UNINTERESTING.contains(&self.kind.as_str())
    }
}

/// Parses `/proc/self/mounts` (`fstab(5)`): what is of interest, each mount point once, the way it
/// was mounted last. Lines that make no sense are passed over.
pub(super) fn parse(text: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    let lines = text.split(|byte| *byte == b'\n');
    for mount in lines.filter_map(parse_line) {
        mounts.retain(|other| other.mountpoint != mount.mountpoint);
        mounts.push(mount);
    }
    mounts.retain(Mount::is_interesting);
    mounts
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    let mut next = || Some(unescape(fields.next()?));
    let source = next()?;
    let mountpoint = next()?;
    let kind = next()?;
    let options = next()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(Mount {
        source: text(&source),
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        kind: text(&kind),
        is_read_only: options
            .split(|byte| *byte == b',')
            .any(|word| word == b"ro"),
    })
}

/// Undoes the kernel's escapes: `\040` is a space (`seq_escape` in `fs/seq_file.c`).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        rest = after;
        let escaped = match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                rest = &after[3..];
                ((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0')
            }
            _ => *byte,
        };
        plain.push(escaped);
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_of_interest_is_kept() {
        let text = b"proc /proc proc rw 0 0\n\
            /dev/vda1 / ext4 rw,relatime 0 0\n\
            tmpfs /run tmpfs rw 0 0\n\
            tmpfs /dev/shm tmpfs rw 0 0\n\
            overlay /var/lib/docker/overlay2/x/merged overlay rw 0 0\n\
            share /mnt virtiofs ro,relatime 0 0\n";
        let mounts = parse(text);
        let found: Vec<_> = mounts
            .iter()
            .map(|m| (m.source.as_str(), m.is_read_only, m.is_local()))
            .collect();
        assert_eq!(
            found,
            [
                ("/dev/vda1", false, true),
                ("tmpfs", false, true),
                ("share", true, false)
            ]
        );
    }

    #[test]
    fn a_folder_that_only_begins_like_a_private_one_is_of_interest() {
        assert_eq!(parse(b"/dev/vdb /device ext4 rw 0 0\n").len(), 1);
    }

    #[test]
    fn escapes_are_undone() {
        let mounts = parse(b"//host/My\\040Files /mnt/a\\040b\\134c\\011d cifs rw 0 0\n");
        assert_eq!(mounts[0].source, "//host/My Files");
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b\\c\td"));
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\"), b"\\999\\");
        assert_eq!(unescape(b"\\377"), b"\xff");
    }

    #[test]
    fn of_two_mounts_in_one_place_the_last_is_seen() {
        let mounts = parse(b"/dev/vdb /srv ext4 rw 0 0\n/dev/vdc /srv xfs rw 0 0\n");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].kind, "xfs");
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        assert_eq!(parse(b"\n/dev/vda1\n/dev/vda1 / ext4\n   \n"), []);
    }
}
