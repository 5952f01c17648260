//! The mounts that metrics report.

use crate::system::mount_table;
pub(super) use crate::system::mount_table::Mount;

/// Types of file systems that are not reported, as by LXD's agent: they have no data of the guest.
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

/// Directories whose mounts, and those below, are not reported.
const IGNORED_FOLDERS: &[&str] = &["/dev", "/proc", "/sys", "/var/lib/docker"];

/// Types of local file systems. `statfs(2)` on any other may wait for ever for another machine or process.
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
        let is_ignored = IGNORED_FOLDERS
            .iter()
            .any(|folder| self.mountpoint.starts_with(folder));
        !is_ignored && !IGNORED_KINDS.contains(&self.kind.as_str())
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
    fn mounts_with_data_of_the_guest_are_reported() {
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
    fn a_mount_point_with_the_prefix_of_an_ignored_one_is_reported() {
        assert_eq!(parse(b"/dev/vdb /device ext4 rw 0 0\n").len(), 1);
    }

    #[test]
    fn of_two_mounts_on_one_mount_point_the_last_is_reported() {
        let mounts = parse(b"/dev/vdb /srv ext4 rw 0 0\n/dev/vdc /srv xfs rw 0 0\n");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].kind, "xfs");
    }
}
