//! Modes: type and permissions of a file in one number (`inode(7)`).

/// The bits of a mode that can be set: permissions, setuid, setgid and sticky.
pub const PERMISSION_BITS: u32 = 0o7777;

/// The type bits of a mode (`S_IFMT`).
const TYPE_BITS: u32 = 0o170_000;

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A FIFO.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A type that Linux does not have.
    Other,
}

impl FileType {
    /// The type in a mode; `None` if it has permissions only.
    #[must_use]
    pub const fn of(mode: u32) -> Option<Self> {
        Some(match mode & TYPE_BITS {
            0 => return None,
            0o010_000 => Self::Fifo,
            0o020_000 => Self::CharacterDevice,
            0o040_000 => Self::Directory,
            0o060_000 => Self::BlockDevice,
            0o100_000 => Self::Regular,
            0o120_000 => Self::Link,
            0o140_000 => Self::Socket,
            _ => Self::Other,
        })
    }

    /// The first letter of a line of `ls -l`.
    const fn letter(self) -> char {
        match self {
            Self::Regular => '-',
            Self::Directory => 'd',
            Self::Link => 'l',
            Self::BlockDevice => 'b',
            Self::CharacterDevice => 'c',
            Self::Fifo => 'p',
            Self::Socket => 's',
            Self::Other => '?',
        }
    }
}

/// A mode as `ls -l` writes it.
#[must_use]
pub fn mode_text(mode: u32) -> String {
    let mut text = String::from(FileType::of(mode).map_or('?', FileType::letter));
    for (shift, special, both, only) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => both,
            (false, true) => only,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_ls_does() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o104_711, "-rws--x--x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o041_777, "drwxrwxrwt"),
            (0o041_776, "drwxrwxrwT"),
            (0o120_777, "lrwxrwxrwx"),
            (0o020_600, "crw-------"),
            (0o060_600, "brw-------"),
            (0o010_600, "prw-------"),
            (0o140_600, "srw-------"),
            (0o170_600, "?rw-------"),
            (0o644, "?rw-r--r--"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }

    #[test]
    fn permissions_alone_have_no_type() {
        assert_eq!(FileType::of(PERMISSION_BITS), None);
        assert_eq!(FileType::of(0o107_777), Some(FileType::Regular));
    }
}
