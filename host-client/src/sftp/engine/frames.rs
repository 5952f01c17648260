//! Cuts what comes from a connection into frames. Does no I/O: the reader asks for
//! [`space`](Frames::space), reports how many bytes it read, and takes the frames.

use bytes::Bytes;

use super::{
    Ending,
    buffers::{Buffer, Buffers},
};
use crate::protocol::sftp::FrameHead;

/// Room for heads and small frames.
const HEAD_BYTES: usize = 64 * 1024;

/// Frames above this get a buffer of their own, which is filled by the kernel directly.
const LARGE_BYTES: usize = 8 * 1024;

/// Read at once behind a large frame: most likely the next one is DATA of the same size, of which
/// only length, type, id and length of the data are needed.
const BEHIND_LARGE_BYTES: usize = FrameHead::BYTES + 1 + 4 + 4;

/// What was read and not taken yet.
#[derive(Debug)]
pub(super) struct Frames {
    small: Box<[u8]>,
    start: usize,
    end: usize,
    large: Option<Large>,
    after_large: bool,
    buffers: Buffers,
}

/// A large frame, partly there.
#[derive(Debug)]
struct Large {
    buffer: Buffer,
    filled: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            small: vec![0; HEAD_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            large: None,
            after_large: false,
            buffers: Buffers::default(),
        }
    }

    /// Where the next bytes go; never empty after [`next`](Self::next) gave nothing.
    pub(super) fn space(&mut self) -> &mut [u8] {
        match &mut self.large {
            Some(large) => &mut large.buffer.as_mut()[large.filled..],
            None => {
                if self.start > 0 {
                    self.small.copy_within(self.start..self.end, 0);
                    self.end -= self.start;
                    self.start = 0;
                }
                let limit = if self.after_large && self.end < BEHIND_LARGE_BYTES {
                    BEHIND_LARGE_BYTES
                } else {
                    HEAD_BYTES
                };
                &mut self.small[self.end..limit]
            }
        }
    }

    /// Reports bytes that were read into [`space`](Self::space).
    pub(super) fn filled(&mut self, bytes: usize) {
        match &mut self.large {
            Some(large) => large.filled += bytes,
            None => self.end += bytes,
        }
    }

    /// The body of the next frame, if it is complete. Refused by its head if it is too long.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Ending> {
        if let Some(large) = &self.large {
            if large.filled < large.buffer.as_ref().len() {
                return Ok(None);
            }
            let body = self.large.take().map(|large| large.buffer.freeze());
            self.after_large = true;
            return Ok(body);
        }
        let Some((head, rest)) = self.small[self.start..self.end].split_first_chunk() else {
            return Ok(None);
        };
        let head = FrameHead::parse(*head).map_err(|error| Ending::Protocol(error.to_string()))?;
        let body = usize::try_from(head.body_bytes)
            .map_err(|_| Ending::Protocol("a frame larger than memory".to_owned()))?;
        if let Some(frame) = rest.get(..body) {
            self.after_large = false;
            let frame = Bytes::copy_from_slice(frame);
            self.start += FrameHead::BYTES + body;
            return Ok(Some(frame));
        }
        if body > LARGE_BYTES {
            let mut buffer = self.buffers.take(body);
            buffer.as_mut()[..rest.len()].copy_from_slice(rest);
            self.large = Some(Large {
                filled: rest.len(),
                buffer,
            });
            (self.start, self.end) = (0, 0);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::sftp::MAX_FRAME_BYTES;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        frame.extend((0..length).map(|n| n.to_le_bytes()[0]));
        frame
    }

    /// Feeds `stream` in pieces of at most `most` bytes.
    fn cut(stream: &[u8], most: usize) -> Vec<Bytes> {
        let (mut frames, mut found, mut rest) = (Frames::new(), Vec::new(), stream);
        loop {
            while let Some(frame) = frames.next().unwrap() {
                found.push(frame);
            }
            let space = frames.space();
            assert!(!space.is_empty());
            let count = rest.len().min(most).min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            frames.filled(count);
            rest = &rest[count..];
            if count == 0 {
                return found;
            }
        }
    }

    #[test]
    fn frames_are_the_same_however_they_come() {
        let most = usize::try_from(MAX_FRAME_BYTES).unwrap();
        let lengths = [1, 9, 8192, 8193, most, 5, 70_000, most, most, 65_532, 3];
        let stream: Vec<u8> = lengths.iter().flat_map(|length| frame(*length)).collect();
        for piece in [1, 7, 4096, 100_000, stream.len()] {
            let found = cut(&stream, piece);
            assert_eq!(found.iter().map(Bytes::len).collect::<Vec<_>>(), lengths);
            for body in found {
                assert_eq!(frame(body.len())[4..], body[..], "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused() {
        let mut frames = Frames::new();
        let head = (MAX_FRAME_BYTES + 1).to_be_bytes();
        frames.space()[..4].copy_from_slice(&head);
        frames.filled(4);
        assert!(matches!(frames.next(), Err(Ending::Protocol(_))));
    }
}
