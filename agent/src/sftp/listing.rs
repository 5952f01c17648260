//! A directory, listed a piece at a time in constant memory.

use std::{
    fmt::Write as _,
    fs::{self, Metadata, ReadDir},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use time::{Month, OffsetDateTime};
use vsock_agent_protocol::sftp::{Attributes, Name};

use super::{SftpError, attributes};

/// Most names in one reply: OpenSSH's figure (`process_readdir`).
const MAX_NAMES: usize = 100;

/// Names stop being added to a reply at this size, in bytes, so that it fits in a frame: a name is
/// at most 255 bytes, and comes twice.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// Age from which a date is shown with the year instead of the time, in seconds: half a year, as
/// `ls(1)` does.
const RECENT_SECONDS: i64 = 15_778_476;

/// An open directory.
#[derive(Debug)]
pub(super) struct Listing {
    path: PathBuf,
    /// `.` and `..`, which the kernel lists and the standard library hides.
    dots: std::vec::IntoIter<&'static str>,
    entries: ReadDir,
}

impl Listing {
    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn open(path: &Path) -> Result<Self, SftpError> {
        let entries = fs::read_dir(path)?;
        Ok(Self {
            path: path.to_owned(),
            dots: vec![".", ".."].into_iter(),
            entries,
        })
    }

    /// The next names.
    ///
    /// # Errors
    ///
    /// [`SftpError::EndOfFile`] when there are no more.
    pub(super) fn next(&mut self) -> Result<Vec<Name>, SftpError> {
        let mut names = Vec::new();
        let mut bytes = 0;
        while names.len() < MAX_NAMES && bytes < MAX_REPLY_BYTES {
            let (name, metadata) = match self.dots.next() {
                Some(dot) => (dot.into(), fs::symlink_metadata(self.path.join(dot))),
                None => match self.entries.next() {
                    None => break,
                    Some(entry) => {
                        let entry = entry?;
                        (entry.file_name(), entry.metadata())
                    }
                },
            };
            let name = Bytes::from(name.into_vec());
            bytes += 2 * name.len();
            names.push(entry(name, metadata));
        }
        if names.is_empty() {
            Err(SftpError::EndOfFile)
        } else {
            Ok(names)
        }
    }
}

/// One entry. Of a file that is gone by now only the name is known.
fn entry(name: Bytes, metadata: io::Result<Metadata>) -> Name {
    match metadata {
        Ok(metadata) => Name {
            long_name: long_name(&name, &metadata).into(),
            attributes: attributes::from_metadata(&metadata),
            name,
        },
        Err(_) => Name {
            long_name: name.clone(),
            name,
            attributes: Attributes::default(),
        },
    }
}

/// The one path that REALPATH and READLINK answer, without attributes.
pub(super) fn only(path: PathBuf) -> Vec<Name> {
    let name = Bytes::from(path.into_os_string().into_vec());
    vec![Name {
        long_name: name.clone(),
        name,
        attributes: Attributes::default(),
    }]
}

/// A line like that of `ls -l`. Control characters in the name become `?`: a person reads it, and
/// programs take the name itself.
fn long_name(name: &[u8], metadata: &Metadata) -> Vec<u8> {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        line,
        "{} {:>3} {:<8} {:<8} {:>8} {} ",
        mode_text(metadata),
        metadata.nlink(),
        metadata.uid(),
        metadata.gid(),
        metadata.size(),
        date(metadata.mtime(), OffsetDateTime::now_utc().unix_timestamp()),
    );
    let shown = name
        .iter()
        .map(|byte| if byte.is_ascii_control() { b'?' } else { *byte });
    line.into_bytes().into_iter().chain(shown).collect()
}

fn mode_text(metadata: &Metadata) -> String {
    let kind = metadata.file_type();
    let mode = metadata.mode();
    let letter = match () {
        () if kind.is_dir() => 'd',
        () if kind.is_symlink() => 'l',
        () if kind.is_char_device() => 'c',
        () if kind.is_block_device() => 'b',
        () if kind.is_fifo() => 'p',
        () if kind.is_socket() => 's',
        () => '-',
    };
    let mut text = String::from(letter);
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => set,
            (false, true) => unset,
        });
    }
    text
}

/// `Nov 22 23:04`, or `Nov 22  2020`; in UTC, as the agent reads no time zones.
fn date(seconds: i64, now: i64) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return "           ?".to_owned();
    };
    let month = match time.month() {
        Month::January => "Jan",
        Month::February => "Feb",
        Month::March => "Mar",
        Month::April => "Apr",
        Month::May => "May",
        Month::June => "Jun",
        Month::July => "Jul",
        Month::August => "Aug",
        Month::September => "Sep",
        Month::October => "Oct",
        Month::November => "Nov",
        Month::December => "Dec",
    };
    let recent = (now - RECENT_SECONDS..=now).contains(&seconds);
    match recent {
        true => format!(
            "{month} {:>2} {:02}:{:02}",
            time.day(),
            time.hour(),
            time.minute()
        ),
        false => format!("{month} {:>2} {:>5}", time.day(), time.year()),
    }
}

/// The bytes of a name as a path.
pub(super) fn path_of(name: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_date_has_the_year_and_no_time() {
        assert_eq!(date(0, 2_000_000_000), "Jan  1  1970");
        assert_eq!(date(2_000_000_000, 2_000_000_000), "May 18 03:33");
    }

    #[test]
    fn a_date_nobody_can_write_is_not_a_panic() {
        assert_eq!(date(9_000_000_000_000, 0), "           ?");
    }

    #[test]
    fn a_listing_starts_with_the_dots_and_ends_with_end_of_file() {
        let mut listing = Listing::open(Path::new("/proc/self/task")).unwrap();
        let names = listing.next().unwrap();
        assert_eq!(names[0].name, ".");
        assert_eq!(names[1].name, "..");
        assert!(names.len() >= 3);
        assert!(matches!(listing.next(), Err(SftpError::EndOfFile)));
    }
}
