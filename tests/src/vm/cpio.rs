//! Writes the archive that Linux unpacks as its first file system.
//!
//! The format is "newc", as in the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`. Writing it here, and not with
//! `cpio`, needs no staging folder and no root: owner, mode and device numbers are just words.

use std::fmt::Write as _;

/// Type bits of a mode, from `stat(2)`.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making. Entries must come after the directory they are in.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str, mode: u32, owner: u32) {
        self.entry(path, DIRECTORY | mode, owner, (0, 0), b"");
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, 0, (0, 0), content);
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, 0, (0, 0), target.as_bytes());
    }

    pub(super) fn character_device(&mut self, path: &str, mode: u32, device: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE | mode, 0, device, b"");
    }

    /// Ends the archive and hands out its bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, (0, 0), b"");
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, owner: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let fields = [
            self.entries, // inode number: only has to be unique
            mode,
            owner,
            owner, // every user here has a group of the same number
            1,     // links
            0,     // time of change
            length(content.len()),
            0,
            0, // the device the file was on
            device.0,
            device.1,
            length(name.len() + 1),
            0, // check sum: none in this format
        ];
        let mut header = String::from("070701");
        for field in fields {
            // Writing to a String cannot fail.
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[expect(
    clippy::expect_used,
    reason = "a file of 4 GiB would not fit the guest either"
)]
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a file in the archive is below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn cpio_entry_has_the_kernels_layout() {
        let mut archive = Archive::default();
        archive.file("/etc/x", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081a4");
        assert_eq!(&bytes[110..116], b"etc/x\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
