//! READ and WRITE, decoded without copying: most requests to a server are these two.

const READ: u8 = 5;
const WRITE: u8 = 6;

/// READ or WRITE, borrowed from its frame. [`super::Request`] has all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataRequest<'a> {
    /// Read from a file.
    Read {
        /// The handle.
        handle: &'a [u8],
        /// Offset in the file, in bytes.
        offset: u64,
        /// Most bytes to read.
        length: u32,
    },
    /// Write to a file.
    Write {
        /// The handle.
        handle: &'a [u8],
        /// Offset in the file, in bytes.
        offset: u64,
        /// The data.
        data: &'a [u8],
    },
}

impl<'a> DataRequest<'a> {
    /// Decodes the body of a frame: id and request. `None` if it is another request, or malformed:
    /// [`super::Request::decode`] gives the error.
    #[must_use]
    pub fn decode(frame: &'a [u8]) -> Option<(u32, Self)> {
        let mut rest = frame;
        let [kind] = take(&mut rest)?;
        if kind != READ && kind != WRITE {
            return None;
        }
        let id = u32::from_be_bytes(take(&mut rest)?);
        let handle = take_string(&mut rest)?;
        let offset = u64::from_be_bytes(take(&mut rest)?);
        let request = match kind {
            READ => Self::Read {
                handle,
                offset,
                length: u32::from_be_bytes(take(&mut rest)?),
            },
            _ => Self::Write {
                handle,
                offset,
                data: take_string(&mut rest)?,
            },
        };
        Some((id, request))
    }
}

/// The fields of a WRITE before its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteHead<'a> {
    /// The request's id.
    pub id: u32,
    /// The handle.
    pub handle: &'a [u8],
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length of the data, in bytes.
    pub length: u32,
}

impl<'a> WriteHead<'a> {
    /// Decodes the front of a frame whose body has `body_bytes`: the head, and the data so far.
    /// `None` if it is no WRITE, too short, or its lengths do not fit each other.
    #[must_use]
    pub fn decode(front: &'a [u8], body_bytes: usize) -> Option<(Self, &'a [u8])> {
        let mut rest = front;
        let [WRITE] = take(&mut rest)? else {
            return None;
        };
        let head = Self {
            id: u32::from_be_bytes(take(&mut rest)?),
            handle: take_string(&mut rest)?,
            offset: u64::from_be_bytes(take(&mut rest)?),
            length: u32::from_be_bytes(take(&mut rest)?),
        };
        let before_data = front.len() - rest.len();
        let length = usize::try_from(head.length).ok()?;
        let is_whole = before_data.checked_add(length) == Some(body_bytes);
        (is_whole && rest.len() <= length).then_some((head, rest))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (value, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*value)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u32::from_be_bytes(take(rest)?)).ok()?;
    let (value, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(value)
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::{super::Request, *};

    fn frame(request: &Request) -> Bytes {
        let mut out = BytesMut::new();
        request.encode(42, &mut out);
        out.freeze().slice(4..)
    }

    #[test]
    fn both_are_read_as_the_other_decoder_reads_them_and_refused_when_cut() {
        let handle = Bytes::from_static(b"h");
        let read = frame(&Request::Read {
            handle: handle.clone(),
            offset: u64::MAX,
            length: 9,
        });
        let expected = DataRequest::Read {
            handle: b"h",
            offset: u64::MAX,
            length: 9,
        };
        assert_eq!(DataRequest::decode(&read), Some((42, expected)));
        let write = frame(&Request::Write {
            handle,
            offset: 1,
            data: Bytes::from_static(b"data"),
        });
        let expected = DataRequest::Write {
            handle: b"h",
            offset: 1,
            data: b"data",
        };
        assert_eq!(DataRequest::decode(&write), Some((42, expected)));
        let head = |end| WriteHead::decode(&write[..end], write.len());
        for end in write.len() - 4..=write.len() {
            let (head, here) = head(end).unwrap();
            assert_eq!((head.id, head.handle), (42, &b"h"[..]));
            assert_eq!((head.offset, head.length), (1, 4));
            assert_eq!(here, &b"data"[..end + 4 - write.len()]);
        }
        assert_eq!(head(write.len() - 5), None);
        assert_eq!(WriteHead::decode(&write, write.len() + 1), None);
        assert_eq!(WriteHead::decode(&read, read.len()), None);
        for frame in [read, write] {
            for end in 0..frame.len() {
                assert_eq!(DataRequest::decode(&frame[..end]), None);
                Request::decode(frame.slice(..end)).unwrap_err();
            }
        }
    }

    #[test]
    fn other_requests_are_left_to_the_other_decoder() {
        let stat = frame(&Request::Stat {
            path: Bytes::from_static(b"/"),
        });
        assert_eq!(DataRequest::decode(&stat), None);
    }
}
