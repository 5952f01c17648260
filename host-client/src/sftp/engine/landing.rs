//! Data of a READ that go from the connection into a local file, by the thread that reads the
//! connection: nobody else is woken, and the kernel moves them without this process seeing them.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    libc::c_int,
    unistd::pipe2,
};

use crate::protocol::sftp::MAX_FRAME_BYTES;

/// Size of the pipe, in bytes. It may be smaller if the kernel does not allow that to a user: only
/// more trips are made then.
const PIPE_BYTES: c_int = MAX_FRAME_BYTES.cast_signed();

/// Bytes moved at once where they have to be copied.
const COPIED_BYTES: usize = 64 * 1024;

/// Where the data of a reply go.
#[derive(Debug, Clone)]
pub(in crate::sftp) struct Landing {
    pub(in crate::sftp) file: Arc<File>,
    /// Of the first byte in the file.
    pub(in crate::sftp) offset: u64,
    /// Bytes that were asked for.
    pub(in crate::sftp) most: u32,
}

/// What a thread needs to land data.
#[derive(Debug)]
pub(super) struct Runway {
    /// Both ends; without them data are copied.
    pipe: Option<(OwnedFd, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Runway {
    pub(super) fn new() -> Self {
        let pipe = pipe2(OFlag::O_CLOEXEC).ok();
        if let Some((_, write)) = &pipe {
            let _ = fcntl(write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        }
        Self {
            pipe,
            buffer: Vec::new(),
        }
    }

    /// Puts `here`, and the next `rest` bytes of the connection, into the file. The inner result is
    /// that of the file; all bytes are taken from the connection in any case.
    ///
    /// # Errors
    ///
    /// Those of the connection: [`io::ErrorKind::WouldBlock`] when its timeout is over,
    /// [`io::ErrorKind::UnexpectedEof`] when it has ended.
    pub(super) fn land(
        &mut self,
        landing: &Landing,
        here: &[u8],
        stream: &UnixStream,
        rest: usize,
    ) -> io::Result<io::Result<()>> {
        let mut offset = landing.offset;
        let mut landed = landing.file.write_all_at(here, offset);
        offset = offset.saturating_add(here.len().try_into().unwrap_or(u64::MAX));
        let mut left = rest;
        while left > 0 {
            let (count, result) = match &landed {
                Ok(()) => self.step(&landing.file, offset, stream, left)?,
                // To nowhere: what comes behind must be found.
                Err(_) => (self.read(stream, left)?, Ok(())),
            };
            landed = landed.and(result);
            left -= count;
            offset = offset.saturating_add(count.try_into().unwrap_or(u64::MAX));
        }
        Ok(landed)
    }

    /// Moves some of the next `most` bytes. Returns how many it took from the connection, and how
    /// that went for the file.
    fn step(
        &mut self,
        file: &File,
        offset: u64,
        stream: &UnixStream,
        most: usize,
    ) -> io::Result<(usize, io::Result<()>)> {
        let Some((read, write)) = &self.pipe else {
            let count = self.read(stream, most)?;
            return Ok((count, file.write_all_at(&self.buffer[..count], offset)));
        };
        let taken = match splice(stream, None, write, None, most, SpliceFFlags::SPLICE_F_MOVE) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(taken) => taken,
            Err(Errno::EINTR) => return Ok((0, Ok(()))),
            Err(Errno::EINVAL) => {
                self.pipe = None;
                return Ok((0, Ok(())));
            }
            Err(errno) => return Err(errno.into()),
        };
        match empty(read, file, offset, taken) {
            Ok(()) => Ok((taken, Ok(()))),
            Err((left, errno)) => {
                // The file cannot be spliced into, or is full: what is in the pipe is written, to
                // hear it again or to be done.
                self.buffer.resize(left, 0);
                File::from(read.try_clone()?).read_exact(&mut self.buffer)?;
                let done = u64::try_from(taken - left).unwrap_or(u64::MAX);
                let written = file.write_all_at(&self.buffer, offset.saturating_add(done));
                if errno == Errno::EINVAL {
                    self.pipe = None;
                }
                Ok((taken, written))
            }
        }
    }

    /// Reads some of the next `most` bytes into the buffer.
    fn read(&mut self, mut stream: &UnixStream, most: usize) -> io::Result<usize> {
        self.buffer.resize(COPIED_BYTES, 0);
        let most = most.min(COPIED_BYTES);
        loop {
            return match stream.read(&mut self.buffer[..most]) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other,
            };
        }
    }
}

/// Moves `left` bytes from the pipe into the file; on failure says how many are still in it.
fn empty(pipe: impl AsFd, file: &File, offset: u64, left: usize) -> Result<(), (usize, Errno)> {
    let mut left = left;
    let mut at = i64::try_from(offset).map_err(|_| (left, Errno::EFBIG))?;
    while left > 0 {
        let flags = SpliceFFlags::SPLICE_F_MOVE;
        match splice(pipe.as_fd(), None, file, Some(&mut at), left, flags) {
            Ok(0) => return Err((left, Errno::EIO)),
            Ok(count) => left = left.saturating_sub(count),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err((left, errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::Write,
        thread,
    };

    use super::*;

    /// Lands `content` behind some bytes, of which `ahead` came with the head, in a file opened by
    /// `options`; gives the result and what the file has then.
    fn landed(
        name: &str,
        options: &OpenOptions,
        runway: &mut Runway,
        content: &[u8],
        ahead: usize,
    ) -> (io::Result<io::Result<()>>, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("landing-{}-{name}", std::process::id()));
        fs::write(&path, b"before").unwrap();
        let landing = Landing {
            file: Arc::new(options.open(&path).unwrap()),
            offset: 6,
            most: u32::MAX,
        };
        let (near, mut far) = UnixStream::pair().unwrap();
        let (here, rest) = content.split_at(ahead);
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                far.write_all(rest).unwrap();
                far.write_all(b"next").unwrap();
            });
            let result = runway.land(&landing, here, &near, rest.len());
            // What comes behind is still there.
            let mut next = [0; 4];
            (&near).read_exact(&mut next).unwrap();
            assert_eq!(&next, b"next");
            result
        });
        let there = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        (result, there)
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect()
    }

    #[test]
    fn data_land_behind_what_is_there_by_splice_and_by_copying() {
        let content = content();
        let expected = [b"before", &content[..]].concat();
        let mut write = OpenOptions::new();
        write.write(true);
        // The kernel splices into no file that is appended to.
        let mut append = OpenOptions::new();
        append.append(true);
        for (name, options, pipe, splices) in [
            ("spliced", &write, true, true),
            ("copied", &write, false, false),
            ("appended", &append, true, false),
        ] {
            for ahead in [0, 1, content.len()] {
                let mut runway = Runway::new();
                if !pipe {
                    runway.pipe = None;
                }
                let (result, there) = landed(name, options, &mut runway, &content, ahead);
                result.unwrap().unwrap();
                assert!(there == expected, "{name}, {ahead} ahead");
                if ahead < content.len() {
                    assert_eq!(runway.pipe.is_some(), splices, "{name}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_written_is_still_taken_from_the_connection() {
        let mut read = OpenOptions::new();
        read.read(true);
        for ahead in [0, 7] {
            let mut runway = Runway::new();
            let (result, there) = landed("unwritable", &read, &mut runway, &content(), ahead);
            result.unwrap().unwrap_err();
            assert_eq!(there, b"before");
        }
    }

    #[test]
    fn an_end_in_the_middle_is_one_of_the_connection() {
        let path = std::env::temp_dir().join(format!("landing-{}-cut", std::process::id()));
        let landing = Landing {
            file: Arc::new(File::create(&path).unwrap()),
            offset: 0,
            most: u32::MAX,
        };
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"abc").unwrap();
        drop(far);
        let result = Runway::new().land(&landing, &[], &near, 4);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        fs::remove_file(&path).unwrap();
    }
}
