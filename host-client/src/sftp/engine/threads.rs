//! Reader and writer as threads that block, for a plain Unix socket: a kernel that puts a file into
//! the socket by itself, and no wait for readiness between two pieces, halve the time of a large
//! copy.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::{self, IoSlice, Write},
    net::Shutdown,
    os::unix::{fs::FileExt, net::UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        sendfile::sendfile64,
        signal::{SigSet, Signal},
        socket::{setsockopt, sockopt::SndBuf},
    },
};

use super::{
    Ending, Shared, dispatch,
    frames::Frames,
    outbox::{FileRange, Outbox, Segment},
    receive::receive,
    table::{Table, Waiter},
    write_behind::WriteBehind,
};

/// Size of the send buffer, in bytes: four of the largest requests.
const SEND_BYTES: usize = 1024 * 1024;

/// Most pieces in one write.
const MAX_SLICES: usize = 64;

/// The two threads. Dropping this closes the connection, which ends them. They are not waited for:
/// one of them may be reading a file from a disk that hangs.
#[derive(Debug)]
pub(super) struct Threads {
    stream: Arc<UnixStream>,
}

impl Threads {
    pub(super) fn start(
        stream: tokio::net::UnixStream,
        frames: Frames,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        // With the default size, both processes wait for each other within each request. The kernel
        // may grant less.
        let _ = setsockopt(&stream, SndBuf, &SEND_BYTES);
        let stream = Arc::new(stream);
        let (ours, socket) = (Arc::clone(shared), Arc::clone(&stream));
        start("sftp writer", move || {
            let reason = match write_frames(&ours.outbox, &socket) {
                Ok(()) => "the session was closed".to_owned(),
                Err(error) => error.to_string(),
            };
            ours.table.end(Ending::Lost(reason));
            // The reader may wait for what never comes.
            let _ = socket.shutdown(Shutdown::Both);
        })?;
        let (ours, socket) = (Arc::clone(shared), Arc::clone(&stream));
        let reader = start("sftp reader", move || {
            let ending = read_replies(&socket, frames, &ours.table, ours.silence);
            ours.table.end(ending);
            ours.outbox.close();
            let _ = socket.shutdown(Shutdown::Both);
        });
        if let Err(error) = reader {
            shared.outbox.close();
            return Err(error);
        }
        Ok(Self { stream })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Fails only if the other end closed first.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(())
}

/// Writes frames as they come, several at once if several wait. It has its thread for itself.
fn write_frames(outbox: &Outbox, stream: &UnixStream) -> io::Result<()> {
    // `sendfile` has no MSG_NOSIGNAL, and not every program that links this ignores the signal as
    // Rust's own do. It goes to the thread that writes, with which it is forgotten.
    SigSet::from(Signal::SIGPIPE).thread_block()?;
    loop {
        let mut segments = outbox.take_blocking();
        if segments.is_empty() {
            return Ok(());
        }
        while !segments.is_empty() {
            write_bytes(stream, &mut segments)?;
            if let Some(Segment::File(_)) = segments.front()
                && let Some(Segment::File(range)) = segments.pop_front()
            {
                send_file(stream, &range)?;
            }
        }
    }
}

/// Writes the segments up to the next one that is a file.
fn write_bytes(mut stream: &UnixStream, segments: &mut VecDeque<Segment>) -> io::Result<()> {
    let mut done = 0;
    loop {
        let slices: Vec<IoSlice<'_>> = segments
            .iter()
            .map_while(|segment| match segment {
                Segment::Bytes(bytes) => Some(bytes),
                Segment::File(_) => None,
            })
            .take(MAX_SLICES)
            .enumerate()
            .map(|(number, bytes)| IoSlice::new(&bytes[if number == 0 { done } else { 0 }..]))
            .collect();
        if slices.is_empty() {
            return Ok(());
        }
        done += match stream.write_vectored(&slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        while let Some(Segment::Bytes(bytes)) = segments.front() {
            if done < bytes.len() {
                break;
            }
            done -= bytes.len();
            segments.pop_front();
        }
    }
}

/// Sends a range of a file with `sendfile(2)`. What cannot be read, or is not there any more, becomes zeros: the length of the frame was already sent.
fn send_file(mut stream: &UnixStream, range: &FileRange) -> io::Result<()> {
    let mut left = usize::try_from(range.length).unwrap_or(usize::MAX);
    let mut offset = i64::try_from(range.offset).unwrap_or(i64::MAX);
    while left > 0 {
        match sendfile64(stream, &*range.source.file, Some(&mut offset), left) {
            Ok(0) => break,
            Ok(count) => left -= count,
            Err(Errno::EINTR) => {}
            Err(errno @ (Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN)) => {
                return Err(errno.into());
            }
            // A file system without it, or a file that cannot be read.
            Err(_) => break,
        }
    }
    if left > 0 {
        let mut rest = vec![0; left];
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        if range.source.file.read_exact_at(&mut rest, offset).is_err() {
            rest.fill(0);
            range.source.set_broken();
        }
        stream.write_all(&rest)?;
    }
    Ok(())
}

/// Reads replies until the connection ends; returns how it ended.
fn read_replies(stream: &UnixStream, frames: Frames, table: &Table, silence: Duration) -> Ending {
    match read_until_it_ends(stream, frames, table, silence) {
        Ok(never) => match never {},
        Err(ending) => ending,
    }
}

fn read_until_it_ends(
    stream: &UnixStream,
    mut frames: Frames,
    table: &Table,
    silence: Duration,
) -> Result<Infallible, Ending> {
    let mut writer = None;
    loop {
        dispatch(&mut frames, table)?;
        let owed = !table.is_idle();
        match receive(stream, frames.space(), silence) {
            Ok(0) => return Err(Ending::closed()),
            Ok(count) => frames.filled(count),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                // Later requests have not waited for that long.
                if owed && !table.is_idle() {
                    return Err(Ending::Silent(silence));
                }
            }
            Err(error) => return Err(Ending::Lost(error.to_string())),
        }
        if let Some((id, length)) = frames.partial_data()
            && let Some((target, waiter)) = table.take_target(id)
        {
            // The caller of these data must find the connection ended.
            let over = |ending: Ending, waiter| {
                table.end(ending.clone());
                drop::<Waiter>(waiter);
                ending
            };
            if length > target.most {
                let what = format!("{length} bytes where {} were asked for", target.most);
                return Err(over(Ending::Protocol(what), waiter));
            }
            let (here, rest) = frames.take_partial_data();
            let (writer, data) = match read_data(&mut writer, here, stream, rest, silence) {
                Ok(read) => read,
                Err(error) => {
                    let ending = match error.kind() {
                        io::ErrorKind::TimedOut => Ending::Silent(silence),
                        io::ErrorKind::UnexpectedEof => Ending::closed(),
                        _ => Ending::Lost(error.to_string()),
                    };
                    return Err(over(ending, waiter));
                }
            };
            writer.write(target, waiter, data);
        }
    }
}

/// Reads data for `writer`, which is started on first use.
fn read_data<'a>(
    writer: &'a mut Option<WriteBehind>,
    here: &[u8],
    stream: &UnixStream,
    rest: usize,
    silence: Duration,
) -> io::Result<(&'a WriteBehind, Vec<u8>)> {
    let writer = match writer {
        Some(writer) => writer,
        None => writer.insert(WriteBehind::start(silence)?),
    };
    let data = writer.read(here, stream, rest)?;
    Ok((writer, data))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::{Path, PathBuf},
        sync::Arc,
    };

    use bytes::{Bytes, BytesMut};

    use super::{
        super::{SILENCE_TIMEOUT, write_behind::FileTarget},
        *,
    };
    use crate::{
        protocol::sftp::{Reply, Request},
        sftp::engine::table::{Answer, PendingReply},
    };

    const BYTES: u32 = 100_000;

    /// Reads what a server says that answers a READ of `most` bytes with [`BYTES`], and then
    /// another request; gives the replies, how it ended, and where the file is.
    fn read(most: u32) -> ([PendingReply; 2], Ending, PathBuf) {
        let path = std::env::temp_dir().join(format!("threads-{}-{most}", std::process::id()));
        let target = FileTarget {
            file: Arc::new(File::create(&path).unwrap()),
            offset: 0,
            most,
        };
        let table = Arc::new(Table::default());
        let (data, written) = table.expect(None, None, Some(target)).unwrap();
        let (other, said) = table.expect(None, None, None).unwrap();
        let mut frames = BytesMut::new();
        let content = Bytes::from(vec![7; usize::try_from(BYTES).unwrap()]);
        Reply::Data { data: content }.encode(data, &mut frames);
        Reply::Status {
            code: 0,
            message: Bytes::new(),
        }
        .encode(other, &mut frames);
        let (near, mut far) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            // The client may have closed the connection.
            let _ = far.write_all(&frames);
        });
        let ending = read_replies(&near, Frames::new(), &table, SILENCE_TIMEOUT);
        drop(near);
        server.join().unwrap();
        table.end(ending.clone());
        ([written, said], ending, path)
    }

    /// A file without a name.
    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("threads-{}-broken", std::process::id()));
        let file = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file
    }

    /// What is in a file that is not needed any more.
    fn take(path: &Path) -> Vec<u8> {
        let there = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        there
    }

    #[test]
    fn a_closed_connection_does_not_end_the_program() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let outbox = Outbox::default();
        let request = Request::Remove { path: "a".into() };
        outbox.push(1, &request);
        let signals = thread::spawn(move || {
            write_frames(&outbox, &near).unwrap_err();
            fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        let signals = signals.join().unwrap();
        let pending = signals
            .lines()
            .find_map(|line| line.strip_prefix("SigPnd:"))
            .unwrap();
        let pending = u64::from_str_radix(pending.trim(), 16).unwrap();
        // Also where it would be ignored, what is held back is pending.
        assert_eq!(pending, 1 << (Signal::SIGPIPE as u32 - 1));
    }

    #[tokio::test]
    async fn data_go_into_their_file_and_what_follows_to_whom_it_belongs() {
        let ([written, said], ending, path) = read(BYTES);
        assert!(matches!(
            written.answer().await.unwrap(),
            Answer::Written(Ok(BYTES))
        ));
        assert!(matches!(
            said.reply().await.unwrap(),
            Reply::Status { code: 0, .. }
        ));
        assert_eq!(ending, Ending::closed());
        assert!(take(&path) == vec![7; usize::try_from(BYTES).unwrap()]);
    }

    #[tokio::test]
    async fn who_waits_for_data_that_break_off_finds_the_connection_over() {
        for _ in 0..200 {
            let table = Arc::new(Table::default());
            let target = FileTarget {
                file: Arc::new(tempfile()),
                offset: 0,
                most: BYTES,
            };
            let (id, written) = table.expect(None, None, Some(target)).unwrap();
            let mut frames = BytesMut::new();
            let data = Bytes::from(vec![7; usize::try_from(BYTES).unwrap()]);
            Reply::Data { data }.encode(id, &mut frames);
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(&frames[..50_000]).unwrap();
            drop(far);
            let known = Arc::clone(&table);
            let reader =
                thread::spawn(move || read_replies(&near, Frames::new(), &known, SILENCE_TIMEOUT));
            written.answer().await.unwrap_err();
            assert!(table.has_ended());
            reader.join().unwrap();
        }
    }

    #[tokio::test]
    async fn more_than_was_asked_for_goes_nowhere() {
        let ([written, said], ending, path) = read(BYTES - 1);
        written.answer().await.unwrap_err();
        said.reply().await.unwrap_err();
        assert!(matches!(ending, Ending::Protocol(_)), "{ending:?}");
        assert!(take(&path).is_empty());
    }
}
