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

/// A value on the wire.
pub(super) trait Field: Sized {
    /// Appends the value.
    fn put(&self, out: &mut BytesMut);

    /// Takes a value off the front.
    fn take(reader: &mut Reader) -> Result<Self, Short>;
}

/// A counted string.
impl Field for Bytes {
    fn put(&self, out: &mut BytesMut) {
        put_string(out, self);
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        reader.string()
    }
}

impl Field for u32 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32(*self);
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        reader.u32()
    }
}

impl Field for u64 {
    fn put(&self, out: &mut BytesMut) {
        out.put_u64(*self);
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        reader.u64()
    }
}

impl<A: Field, B: Field> Field for (A, B) {
    fn put(&self, out: &mut BytesMut) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(reader: &mut Reader) -> Result<Self, Short> {
        Ok((A::take(reader)?, B::take(reader)?))
    }
}

/// Writes or reads a field: as its type does, or as another type does it.
macro_rules! field {
    (take $reader:ident) => {
        Field::take($reader)?
    };
    (take $reader:ident, $codec:ident) => {
        $codec::take($reader)?
    };
    (put $value:expr, $out:ident) => {
        Field::put($value, $out)
    };
    (put $value:expr, $out:ident, $codec:ident) => {
        $codec::put($value, $out)
    };
}

/// An enum of frames: the type byte of each, and its fields in their order. The first frame, whose type is
/// the number behind the name, has no id.
macro_rules! frames {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $first:literal {
            $(
                $(#[$doc:meta])*
                $kind:literal => $variant:ident {
                    $($(#[$field_doc:meta])* $field:ident: $type:ty $(as $codec:ident)?),+ $(,)?
                }
            ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant { $($(#[$field_doc])* $field: $type),+ }),+
        }

        impl $name {
            /// Decodes the body of a frame. The id of the first frame is 0.
            ///
            /// # Errors
            ///
            /// [`DecodeError::UnknownType`] or [`DecodeError::Malformed`]; after both, the next frame can
            /// be read.
            pub fn decode(frame: Bytes) -> Result<(u32, Self), DecodeError> {
                let mut reader = Reader(frame);
                let kind = reader.u8().unwrap_or(0);
                let id = match kind {
                    $first => Some(0),
                    _ => reader.u32().ok(),
                };
                match (id, Self::take(kind, &mut reader)) {
                    (Some(id), Ok(Some(value))) => Ok((id, value)),
                    (id, Ok(None)) => Err(DecodeError::UnknownType { kind, id }),
                    (id, _) => Err(DecodeError::Malformed {
                        kind,
                        id: id.filter(|_| kind != $first),
                    }),
                }
            }

            /// Reads what follows the id; `None` for an unknown type.
            fn take(kind: u8, reader: &mut Reader) -> Result<Option<Self>, Short> {
                Ok(Some(match kind {
                    $($kind => Self::$variant { $($field: field!(take reader $(, $codec)?)),+ },)+
                    _ => return Ok(None),
                }))
            }

            /// Appends the whole frame to `out`. `id` is ignored for the first frame.
            ///
            /// # Panics
            ///
            /// When a name or the data is longer than 4 GiB.
            pub fn encode(&self, id: u32, out: &mut BytesMut) {
                put_frame(out, |out| {
                    let kind = self.kind();
                    out.put_u8(kind);
                    if kind != $first {
                        out.put_u32(id);
                    }
                    self.put(out);
                });
            }

            const fn kind(&self) -> u8 {
                match self {
                    $(Self::$variant { .. } => $kind),+
                }
            }

            fn put(&self, out: &mut BytesMut) {
                match self {
                    $(Self::$variant { $($field),+ } => { $(field!(put $field, out $(, $codec)?);)+ })+
                }
            }
        }
    };
}

pub(super) use {field, frames};

/// The rest of a frame.
pub(super) struct Rest;

impl Rest {
    pub(super) fn put(value: &Bytes, out: &mut BytesMut) {
        out.put_slice(value);
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the other fields")]
    pub(super) fn take(reader: &mut Reader) -> Result<Bytes, Short> {
        Ok(reader.rest())
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
