//! The mount table `/proc/self/mounts` (`fstab(5)`).

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// File systems that may not survive a reboot. The upper layer of an overlay may be in memory.
const VOLATILE: [&str; 4] = ["tmpfs", "ramfs", "rootfs", "overlay"];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The device, or another text.
    pub(crate) source: String,
    /// The mount point. May not be UTF-8.
    pub(crate) mountpoint: PathBuf,
    /// The type of the file system, as in `ext4`.
    pub(crate) kind: String,
    pub(crate) is_read_only: bool,
}

/// Parses the table, in the order of mounting. Invalid lines are skipped.
pub(crate) fn parse(text: &[u8]) -> impl Iterator<Item = Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// Whether a file at this absolute path survives a reboot of the guest whose `/` is `root`. False if the
/// mount table cannot be read.
pub(crate) fn outlives_reboot(root: &Path, path: &Path) -> bool {
    let table = fs::read(root.join("proc/self/mounts")).unwrap_or_default();
    parse(&table)
        .filter(|mount| path.starts_with(&mount.mountpoint))
        .max_by_key(|mount| mount.mountpoint.components().count())
        .is_some_and(|mount| !VOLATILE.contains(&mount.kind.as_str()))
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

/// Decodes the kernel's octal escapes: `\040` is a space (`seq_escape` in `fs/seq_file.c`).
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
    fn octal_escapes_in_the_mount_table_are_decoded() {
        let line = b"//host/My\\040Files /mnt/a\\040b\\134c\\011d cifs rw 0 0\n";
        let mounts: Vec<_> = parse(line).collect();
        assert_eq!(mounts[0].source, "//host/My Files");
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b\\c\td"));
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\"), b"\\999\\");
        assert_eq!(unescape(b"\\377"), b"\xff");
    }

    #[test]
    fn invalid_lines_of_the_mount_table_are_skipped() {
        let text = b"\n/dev/vda1\n/dev/vda1 / ext4\n   \n";
        assert_eq!(parse(text).count(), 0);
    }
}
