//! The primitive types: numbers are big-endian, strings are counted bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::MAX_FRAME_BYTES;

/// Bytes of a frame before its body: the length word.
const LENGTH_BYTES: usize = 4;

/// A frame that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame is empty, or larger than [`MAX_FRAME_BYTES`]. The stream is unusable: what follows is
    /// not the head of a frame.
    #[error("a frame of {0} bytes is not within 1 to {MAX_FRAME_BYTES}")]
    Length(u32),
    /// The body ends too early, or the length of a string exceeds the frame.
    #[error("a frame of type {kind} is malformed")]
    Malformed {
        /// The type byte.
        kind: u8,
        /// The request's id, if it could be read.
        id: Option<u32>,
    },
    /// The type is not defined in the protocol.
    #[error("a frame has the unknown type {kind}")]
    UnknownType {
        /// The type byte.
        kind: u8,
        /// The request's id, if it could be read.
        id: Option<u32>,
    },
}

/// The length word at the head of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes that follow the length word.
    pub body_bytes: u32,
}

impl FrameHead {
    /// Size of the head itself, in bytes.
    pub const BYTES: usize = LENGTH_BYTES;

    /// Reads the head of a frame.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Length`] if the frame is empty or above [`MAX_FRAME_BYTES`].
    pub const fn parse(head: [u8; LENGTH_BYTES]) -> Result<Self, DecodeError> {
        match u32::from_be_bytes(head) {
            body_bytes @ 1..=MAX_FRAME_BYTES => Ok(Self { body_bytes }),
            wrong => Err(DecodeError::Length(wrong)),
        }
    }
}

/// The body ended before the value did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short;

/// Takes values off the front of a frame.
#[derive(Debug)]
pub(super) struct Reader(pub(super) Bytes);

impl Reader {
    pub(super) fn u8(&mut self) -> Result<u8, Short> {
        self.0.try_get_u8().map_err(|_| Short)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Short> {
        self.0.try_get_u32().map_err(|_| Short)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Short> {
        self.0.try_get_u64().map_err(|_| Short)
    }

    /// A counted string, sharing the frame's memory.
    pub(super) fn string(&mut self) -> Result<Bytes, Short> {
        let length = usize::try_from(self.u32()?).map_err(|_| Short)?;
        if length > self.0.len() {
            return Err(Short);
        }
        Ok(self.0.split_to(length))
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> Bytes {
        self.0.split_to(self.0.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes a counted string.
///
/// # Panics
///
/// When `value` is longer than a `u32` can count; every caller is bounded by a frame.
pub(super) fn put_string(out: &mut BytesMut, value: &[u8]) {
    #[expect(
        clippy::expect_used,
        reason = "a string of 4 GiB cannot be in a frame of 256 KiB"
    )]
    let length = u32::try_from(value.len()).expect("a string longer than a frame");
    out.put_u32(length);
    out.put_slice(value);
}

/// Appends one frame to `out`: `body` writes what follows the length word.
///
/// # Panics
///
/// When the body is longer than a `u32` can count.
pub(super) fn put_frame(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = out.len() - start - LENGTH_BYTES;
    #[expect(clippy::expect_used, reason = "no body of 4 GiB is ever built")]
    let length = u32::try_from(length).expect("a frame longer than its length word can express");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_head() {
        let head = (MAX_FRAME_BYTES + 1).to_be_bytes();
        assert_eq!(
            FrameHead::parse(head),
            Err(DecodeError::Length(MAX_FRAME_BYTES + 1))
        );
        assert_eq!(FrameHead::parse([0; 4]), Err(DecodeError::Length(0)));
    }

    #[test]
    fn a_string_longer_than_its_frame_is_refused() {
        let mut reader = Reader(Bytes::from_static(&[0, 0, 0, 9, b'a']));
        assert_eq!(reader.string(), Err(Short));
    }
}
