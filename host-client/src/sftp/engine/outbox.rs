//! Queue of frames to be sent, gathered so that many go in one write.

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::protocol::sftp::Request;

/// Data up to this size is copied behind its head; more is written from where it is.
const COPIED_BYTES: usize = 16 * 1024;

/// Bytes gathered for one write, and as many again while it is written.
const GATHERED_BYTES: usize = 64 * 1024;

/// What a WRITE carries.
#[derive(Debug, Clone)]
pub(in crate::sftp) enum Payload {
    /// These bytes.
    Bytes(Bytes),
    /// A range of a local file, which is read when it is sent.
    File(FileRange),
}

/// A range of a local file.
#[derive(Debug, Clone)]
pub(in crate::sftp) struct FileRange {
    pub(in crate::sftp) source: Arc<LocalSource>,
    pub(in crate::sftp) offset: u64,
    pub(in crate::sftp) length: u32,
}

/// A local file that is sent.
#[derive(Debug)]
pub(crate) struct LocalSource {
    pub(crate) file: Arc<File>,
    broken: AtomicBool,
}

impl LocalSource {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            broken: AtomicBool::new(false),
        }
    }

    /// Whether a range could not be read, or had ended. Zeros were sent in its place.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Fills `buffer`. The length of its frame was already sent: what is missing becomes zeros.
    fn read(&self, offset: u64, buffer: &mut [u8]) {
        if self.file.read_exact_at(buffer, offset).is_err() {
            buffer.fill(0);
            self.broken.store(true, Ordering::Release);
        }
    }
}

impl Payload {
    pub(in crate::sftp) fn len(&self) -> u32 {
        match self {
            Self::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::File(range) => range.length,
        }
    }
}

/// A piece of the stream.
#[derive(Debug)]
pub(super) enum Segment {
    Bytes(Bytes),
    File(FileRange),
}

/// The queue. Its memory is limited by the requests and the bytes in flight.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// Wakes the writer.
    filled: Notify,
}

#[derive(Debug, Default)]
struct State {
    segments: VecDeque<Segment>,
    tail: BytesMut,
    corks: u32,
    closed: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.tail.is_empty()
    }

    /// Adds a frame behind which come `data` bytes that still belong to it.
    fn put_head(&mut self, id: u32, head: &Request, data: u32) -> &mut [u8] {
        let start = self.tail.len();
        head.encode(id, &mut self.tail);
        let frame = &mut self.tail[start..];
        if let Some(length) = frame.first_chunk_mut() {
            *length = u32::from_be_bytes(*length)
                .saturating_add(data)
                .to_be_bytes();
        }
        frame
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.segments.push_back(Segment::Bytes(tail));
        }
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request.
    pub(super) fn push(&self, id: u32, request: &Request) {
        let mut state = self.lock();
        match request {
            Request::Extended { name, data } if data.len() > COPIED_BYTES => {
                let head = Request::Extended {
                    name: name.clone(),
                    data: Bytes::new(),
                };
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                state.put_head(id, &head, length);
                state.seal_tail();
                state.segments.push_back(Segment::Bytes(data.clone()));
            }
            request => request.encode(id, &mut state.tail),
        }
        self.wake(&state);
    }

    /// Adds a WRITE with its data behind it.
    pub(super) fn push_write(&self, id: u32, handle: Bytes, offset: u64, payload: Payload) {
        let head = Request::Write {
            handle,
            offset,
            data: Bytes::new(),
        };
        let mut state = self.lock();
        let data = payload.len();
        let frame = state.put_head(id, &head, data);
        // The frame ends with the length of its data.
        if let Some(length) = frame.last_chunk_mut() {
            *length = data.to_be_bytes();
        }
        match payload {
            Payload::Bytes(bytes) if bytes.len() <= COPIED_BYTES => {
                state.tail.extend_from_slice(&bytes);
            }
            Payload::Bytes(bytes) => {
                state.seal_tail();
                state.segments.push_back(Segment::Bytes(bytes));
            }
            Payload::File(range) => {
                state.seal_tail();
                state.segments.push_back(Segment::File(range));
            }
        }
        self.wake(&state);
    }

    fn wake(&self, state: &State) {
        if state.corks == 0 {
            self.filled.notify_one();
        }
    }

    /// Holds frames back until the returned guard is dropped.
    pub(super) fn cork(&self) -> Cork<'_> {
        self.lock().corks += 1;
        Cork(self)
    }

    /// No more frames: the writer ends.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.segments.clear();
        state.tail.clear();
        self.filled.notify_one();
    }

    /// What is to be written; empty after [`close`](Self::close).
    pub(super) async fn take(&self) -> VecDeque<Segment> {
        loop {
            if let Some(segments) = take(&mut self.lock()) {
                return segments;
            }
            self.filled.notified().await;
        }
    }
}

fn take(state: &mut State) -> Option<VecDeque<Segment>> {
    if state.closed {
        return Some(VecDeque::new());
    }
    if state.corks > 0 || state.is_empty() {
        return None;
    }
    state.seal_tail();
    Some(std::mem::take(&mut state.segments))
}

/// Frames are held back as long as this lives.
#[derive(Debug)]
pub(in crate::sftp) struct Cork<'a>(&'a Outbox);

impl Drop for Cork<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.corks -= 1;
        if !state.is_empty() {
            self.0.wake(&state);
        }
    }
}

/// Appends the next segments to `buffer`, as many as make one good write. May block on a file.
pub(super) fn gather(segments: &mut VecDeque<Segment>, buffer: &mut Vec<u8>) {
    while buffer.len() < GATHERED_BYTES {
        match segments.pop_front() {
            Some(Segment::Bytes(bytes)) => buffer.extend_from_slice(&bytes),
            Some(Segment::File(range)) => {
                let start = buffer.len();
                buffer.resize(
                    start + usize::try_from(range.length).unwrap_or(usize::MAX),
                    0,
                );
                range.source.read(range.offset, &mut buffer[start..]);
            }
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(outbox: &Outbox) -> Vec<u8> {
        let mut segments = take(&mut outbox.lock()).unwrap();
        let mut bytes = Vec::new();
        while !segments.is_empty() {
            let mut buffer = Vec::new();
            gather(&mut segments, &mut buffer);
            bytes.extend(buffer);
        }
        bytes
    }

    #[test]
    fn a_write_is_the_same_wherever_its_data_is() {
        let content: Vec<u8> = (0..40_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let file = tempfile(&content);
        for length in [1, COPIED_BYTES, COPIED_BYTES + 1, content.len()] {
            let data = Bytes::copy_from_slice(&content[..length]);
            let handle = Bytes::from_static(b"h");
            let mut expected = BytesMut::new();
            let (offset, id) = (7, 9);
            Request::Write {
                handle: handle.clone(),
                offset,
                data: data.clone(),
            }
            .encode(id, &mut expected);
            let range = FileRange {
                source: Arc::clone(&file),
                offset: 0,
                length: u32::try_from(length).unwrap(),
            };
            for payload in [Payload::Bytes(data), Payload::File(range)] {
                let outbox = Outbox::default();
                outbox.push_write(id, handle.clone(), offset, payload);
                assert!(gathered(&outbox) == expected, "{length} bytes");
            }
        }
        assert!(!file.is_broken());
    }

    #[test]
    fn a_file_that_is_too_short_still_fills_its_frame() {
        let file = tempfile(b"abc");
        let range = FileRange {
            source: Arc::clone(&file),
            offset: 1,
            length: 5,
        };
        let outbox = Outbox::default();
        outbox.push_write(1, Bytes::from_static(b"h"), 0, Payload::File(range));
        assert!(gathered(&outbox).ends_with(&[0; 5]));
        assert!(file.is_broken());
    }

    #[test]
    fn nothing_leaves_a_corked_outbox() {
        let outbox = Outbox::default();
        let cork = outbox.cork();
        let path = Bytes::from_static(b"/");
        outbox.push(1, &Request::Stat { path });
        assert!(take(&mut outbox.lock()).is_none());
        drop(cork);
        assert_eq!(take(&mut outbox.lock()).unwrap().len(), 1);
    }

    fn tempfile(content: &[u8]) -> Arc<LocalSource> {
        let path = std::env::temp_dir().join(format!(
            "outbox-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, content).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        Arc::new(LocalSource::new(file))
    }
}
