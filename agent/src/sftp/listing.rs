//! Listing a directory in pieces, in constant memory.

use std::{fmt::Write as _, os::fd::OwnedFd};

use bytes::Bytes;
use nix::{
    dir::{Dir, OwningIter},
    fcntl::{AtFlags, OFlag},
    sys::stat::{FileStat, Mode, fstatat},
};
use time::OffsetDateTime;
use vsock_agent_protocol::sftp::{Attributes, Name, mode_text};

use super::{SftpError, attributes, tree::Tree};

/// Most names in one reply, as OpenSSH (`process_readdir`).
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
    /// A second descriptor, for `fstatat(2)` of the entries, wherever the directory is moved.
    directory: OwnedFd,
    entries: OwningIter,
}

impl Listing {
    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// The errno of `open(2)`.
    pub(super) fn open(tree: &Tree, path: &[u8]) -> Result<Self, SftpError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
        let directory = tree.open(path, flags, Mode::empty())?;
        let entries = Dir::from_fd(directory.try_clone()?)?.into_iter();
        Ok(Self { directory, entries })
    }

    /// The next names.
    ///
    /// # Errors
    ///
    /// [`SftpError::EndOfFile`] when there are no more.
    pub(super) fn next(&mut self) -> Result<Vec<Name>, SftpError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut names = Vec::new();
        let mut bytes = 0;
        while names.len() < MAX_NAMES && bytes < MAX_REPLY_BYTES {
            let Some(found) = self.entries.next() else {
                break;
            };
            let found = found?;
            let name = found.file_name();
            let stat = fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
            let name = Bytes::copy_from_slice(name.to_bytes());
            bytes += 2 * name.len();
            names.push(entry(name, stat.ok().as_ref(), now));
        }
        if names.is_empty() {
            Err(SftpError::EndOfFile)
        } else {
            Ok(names)
        }
    }
}

/// One entry; only its name if the file is gone by now.
fn entry(name: Bytes, stat: Option<&FileStat>, now: i64) -> Name {
    match stat {
        Some(stat) => Name {
            long_name: long_name(&name, stat, now).into(),
            attributes: attributes::from_stat(stat),
            name,
        },
        None => Name {
            long_name: name.clone(),
            name,
            attributes: Attributes::default(),
        },
    }
}

/// The reply to REALPATH and READLINK: one path without attributes.
pub(super) fn only(path: Vec<u8>) -> Vec<Name> {
    let name = Bytes::from(path);
    vec![Name {
        long_name: name.clone(),
        name,
        attributes: Attributes::default(),
    }]
}

/// A line like that of `ls -l`. Control characters in the name become `?`: the line is for
/// people, programs use the name itself.
fn long_name(name: &[u8], stat: &FileStat, now: i64) -> Vec<u8> {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        line,
        "{} {:>3} {:<8} {:<8} {:>8} {} ",
        mode_text(stat.st_mode),
        stat.st_nlink,
        stat.st_uid,
        stat.st_gid,
        stat.st_size,
        date(stat.st_mtime, now),
    );
    let shown = name
        .iter()
        .map(|byte| if byte.is_ascii_control() { b'?' } else { *byte });
    line.into_bytes().into_iter().chain(shown).collect()
}

/// `Nov 22 23:04`, or `Nov 22  2020`; in UTC, as the agent reads no time zones.
fn date(seconds: i64, now: i64) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return "           ?".to_owned();
    };
    let month = &time.month().to_string()[..3];
    let recent = (now - RECENT_SECONDS..=now).contains(&seconds);
    if recent {
        format!(
            "{month} {:>2} {:02}:{:02}",
            time.day(),
            time.hour(),
            time.minute()
        )
    } else {
        format!("{month} {:>2} {:>5}", time.day(), time.year())
    }
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
    fn a_date_out_of_range_is_a_question_mark() {
        assert_eq!(date(9_000_000_000_000, 0), "           ?");
    }

    #[test]
    fn a_listing_has_the_dots_and_ends_with_end_of_file() {
        let tree = Tree::whole(std::path::Path::new("/")).unwrap();
        let mut listing = Listing::open(&tree, b"/proc/self/task").unwrap();
        let names = listing.next().unwrap();
        assert!(names.iter().any(|name| name.name == "."));
        assert!(names.iter().any(|name| name.name == ".."));
        assert!(names.len() >= 3);
        assert!(matches!(listing.next(), Err(SftpError::EndOfFile)));
    }
}
