//! Requests for ranges of files: copying, hashing, and finding holes. Copying and hashing may take
//! long, and stop when their session has ended.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, copy_file_range, open},
    sys::stat::{Mode, fstat},
    unistd::{Whence, lseek},
};
use vsock_agent_protocol::sftp::extension::{CopyData, HashRange, Holes, MAX_HOLES, RangeHash};

use super::{SftpError, handles::Open};

/// Size of one step, in bytes. Before each, the end of the session is checked.
const STEP_BYTES: usize = 128 * 1024;

/// Size of one step of `copy_file_range(2)`, in bytes.
const KERNEL_STEP_BYTES: usize = 16 * 1024 * 1024;

/// Size of one step in OpenSSH's server, in bytes (`process_extended_copy_data`, `sftp-server.c`).
const OPENSSH_STEP_BYTES: u64 = 64 * 1024;

/// Copies from one open file to another, a length of 0 up to the end.
///
/// # Errors
///
/// [`SftpError::EndOfFile`] when the source ends before the range does, as far as OpenSSH's server
/// notices.
pub(super) fn copy(
    request: &CopyData,
    from: &Open,
    to: &Open,
    ended: &AtomicBool,
) -> Result<(), SftpError> {
    let (source, target) = (from.file()?, to.file()?);
    // OpenSSH compares handles and paths. Two names of one file are refused too: a copy to the end
    // that appends to its own source would never end.
    let (here, there) = (fstat(source)?, fstat(target)?);
    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) {
        return Err(SftpError::SameFile);
    }
    let mut at = offset(request.from_offset)?;
    let mut into = if to.appends() {
        None
    } else {
        Some(offset(request.to_offset)?)
    };
    let length = match request.length {
        0 => u64::MAX,
        length => length,
    };
    let mut left = length;
    let mut by_kernel = !to.appends();
    while left > 0 {
        check(ended)?;
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let copied = match (by_kernel, &mut into) {
            (true, Some(into)) => {
                let most = most.min(KERNEL_STEP_BYTES);
                match copy_file_range(source, Some(&mut at), target, Some(into), most) {
                    Err(Errno::EINTR) => continue,
                    // Two file systems, a special file system, an old kernel. A file of `/proc`
                    // reads as empty.
                    Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
                    | Ok(0) => {
                        by_kernel = false;
                        continue;
                    }
                    other => other?,
                }
            }
            _ => copy_step(source, &mut at, target, into.as_mut(), most.min(STEP_BYTES))?,
        };
        if copied == 0 {
            return end_of_copy(request.length, length - left);
        }
        left = left.saturating_sub(u64::try_from(copied).unwrap_or(u64::MAX));
    }
    Ok(())
}

fn copy_step(
    source: &File,
    at: &mut i64,
    mut target: &File,
    into: Option<&mut i64>,
    most: usize,
) -> io::Result<usize> {
    let mut buffer = vec![0; most];
    let read = read_at(source, &mut buffer, at.unsigned_abs())?;
    let step = i64::try_from(read).map_err(io::Error::other)?;
    match into {
        Some(into) => {
            target.write_all_at(&buffer[..read], into.unsigned_abs())?;
            *into = into.saturating_add(step);
        }
        None => io::Write::write_all(&mut target, &buffer[..read])?,
    }
    *at = at.saturating_add(step);
    Ok(read)
}

/// The file ended before the range did. OpenSSH only notices when there are steps left.
fn end_of_copy(wanted: u64, copied: u64) -> Result<(), SftpError> {
    let steps = copied.div_ceil(OPENSSH_STEP_BYTES) + 1;
    if wanted > steps.saturating_mul(OPENSSH_STEP_BYTES) {
        Err(SftpError::EndOfFile)
    } else {
        Ok(())
    }
}

/// Hashes a range, up to the end of the file.
///
/// # Errors
///
/// When the session's user may not read the file, even if it may write it.
pub(super) fn hash(
    range: &HashRange,
    file: &File,
    ended: &AtomicBool,
) -> Result<RangeHash, SftpError> {
    // A file that is open for writing only is opened again, with the rights of this user.
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let again = open(again.as_str(), flags, Mode::empty()).map(File::from);
    let file = again.as_ref().unwrap_or(file);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut length = 0;
    while length < range.length {
        check(ended)?;
        let left = usize::try_from(range.length - length).unwrap_or(usize::MAX);
        let room = &mut buffer[..left.min(STEP_BYTES)];
        let read = match range.offset.checked_add(length) {
            Some(at) => read_at(file, room, at)?,
            None => 0,
        };
        if read == 0 {
            break;
        }
        hasher.update(&room[..read]);
        length += u64::try_from(read).unwrap_or(0);
    }
    Ok(RangeHash {
        length,
        hash: *hasher.finalize().as_bytes(),
    })
}

/// Finds holes from `start` on. There are none on a file system without `SEEK_HOLE`.
///
/// # Errors
///
/// The errno of `fstat(2)` or `lseek(2)`.
pub(super) fn holes(start: u64, file: &File) -> Result<Holes, SftpError> {
    let size = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    let mut map = Holes {
        end: start.min(size),
        size,
        holes: Vec::new(),
    };
    while map.end < size && map.holes.len() < MAX_HOLES {
        let hole = seek(file, map.end, Whence::SeekHole)?.unwrap_or(size);
        if hole >= size {
            map.end = size;
            break;
        }
        let data = seek(file, hole, Whence::SeekData)?
            .unwrap_or(size)
            .min(size);
        if data > hole {
            map.holes.push((hole, data - hole));
        }
        map.end = data.max(hole + 1);
    }
    Ok(map)
}

/// `None` when there is none from there on.
fn seek(file: &File, from: u64, what: Whence) -> nix::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
    match lseek(file.as_fd(), from, what) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        // None left, or a special file that does not support it.
        Err(Errno::ENXIO | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn offset(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EINVAL)
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn check(ended: &AtomicBool) -> Result<(), SftpError> {
    if ended.load(Ordering::Relaxed) {
        Err(io::Error::other("the session has ended").into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::handles::Kind, *};

    static GOING_ON: AtomicBool = AtomicBool::new(false);

    fn file(name: &str, data: &[u8]) -> Open {
        let name = format!("agent-ranges-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true);
        let file = file.open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all_at(data, 0).unwrap();
        Open {
            kind: Kind::File {
                file,
                appends: false,
            },
            path: Bytes::new(),
        }
    }

    fn copied(length: u64, from: &Open, to: &Open) -> Result<(), SftpError> {
        let wanted = CopyData {
            from: Bytes::new(),
            from_offset: 1,
            length,
            to: Bytes::new(),
            to_offset: 2,
        };
        copy(&wanted, from, to, &GOING_ON)
    }

    #[test]
    fn a_copy_ends_where_the_file_does_and_says_so_as_openssh_does() {
        let (from, to) = (file("from", b"hello"), file("to", b"XY"));
        for (length, result) in [("ell", 3), ("ello", 0), ("ello", 65_536)].map(|(e, l)| (l, e)) {
            to.file().unwrap().set_len(2).unwrap();
            copied(length, &from, &to).unwrap();
            let mut there = vec![0; 10];
            let read = to.file().unwrap().read_at(&mut there, 0).unwrap();
            assert_eq!(there[..read], *format!("XY{result}").as_bytes());
        }
        let far = copied(2 * OPENSSH_STEP_BYTES + 1, &from, &to);
        assert!(matches!(far, Err(SftpError::EndOfFile)), "{far:?}");
        let again = Open {
            kind: Kind::File {
                file: from.file().unwrap().try_clone().unwrap(),
                appends: true,
            },
            path: Bytes::from_static(b"another name"),
        };
        let same = copied(0, &from, &again);
        assert!(matches!(same, Err(SftpError::SameFile)), "{same:?}");
    }

    #[test]
    fn a_hash_is_of_what_is_there() {
        let data = vec![7; 3 * STEP_BYTES];
        let file = file("hash", &data);
        let range = HashRange {
            handle: Bytes::new(),
            offset: 5,
            length: u64::MAX,
        };
        let hash = hash(&range, file.file().unwrap(), &GOING_ON).unwrap();
        assert_eq!(hash.length, 3 * STEP_BYTES as u64 - 5);
        assert_eq!(hash.hash, *blake3::hash(&data[5..]).as_bytes());
    }

    #[test]
    fn an_ended_session_hashes_no_more() {
        let range = HashRange {
            handle: Bytes::new(),
            offset: 0,
            length: u64::MAX,
        };
        let endless = File::open("/dev/zero").unwrap();
        hash(&range, &endless, &AtomicBool::new(true)).unwrap_err();
    }

    #[test]
    fn holes_are_found_and_none_is_beyond_the_end() {
        let file = file("holes", b"data");
        let file = file.file().unwrap();
        file.write_all_at(b"x", 1 << 20).unwrap();
        file.set_len(1 << 21).unwrap();
        let map = holes(0, file).unwrap();
        assert_eq!((map.end, map.size), (1 << 21, 1 << 21));
        let total: u64 = map.holes.iter().map(|(_, length)| length).sum();
        assert!(total > 1 << 20, "{map:?}");
        assert_eq!(Holes::decode(map.encode()), Ok(map));
        assert_eq!(holes(u64::MAX, file).unwrap().end, 1 << 21);
    }
}
