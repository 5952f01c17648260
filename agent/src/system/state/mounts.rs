//! Selects the mounts that are reported.

use crate::system::mount_table;
pub(super) use crate::system::mount_table::Mount;

/// File systems without data of the guest, which LXD's agent ignores, too.
const IGNORED_KINDS: &[&str] = &[
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

/// Folders whose mounts, and those below, are ignored.
const IGNORED_FOLDERS: &[&str] = &["/dev", "/proc", "/sys", "/var/lib/docker"];

/// Local file systems. `statfs(2)` on any other may wait for another machine or process that never
/// answers.
const LOCAL: &[&str] = &[
    "bcachefs", "btrfs", "efivarfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus",
    "jfs", "minix", "nilfs2", "ntfs3", "ramfs", "reiserfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

impl Mount {
    /// Whether `statfs(2)` cannot hang.
    pub(super) fn is_local(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }

    fn is_reported(&self) -> bool {
        let is_private = IGNORED_FOLDERS
            .iter()
            .any(|folder| self.mountpoint.starts_with(folder));
        !is_private && !IGNORED_KINDS.contains(&self.kind.as_str())
    }
}

/// The reported mounts of the table: the last one of each mount point.
pub(super) fn parse(text: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in mount_table::parse(text) {
        mounts.retain(|other| other.mountpoint != mount.mountpoint);
        mounts.push(mount);
    }
    mounts.retain(Mount::is_reported);
    mounts
}

#[cfg(test)]
mod tests {
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
    fn of_two_mounts_in_one_place_the_last_is_seen() {
        let mounts = parse(b"/dev/vdb /srv ext4 rw 0 0\n/dev/vdc /srv xfs rw 0 0\n");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].kind, "xfs");
    }
}
