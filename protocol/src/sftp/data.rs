//! READ and WRITE, read in place: a server does little else, and their data need not be copied.

use super::request::{READ, WRITE};

/// A request for data, borrowed from its frame. [`super::Request`] has the same two and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataRequest<'a> {
    /// Read from a file.
    Read {
        /// The handle.
        handle: &'a [u8],
        /// Where, in bytes from the start.
        offset: u64,
        /// How much, in bytes, at most.
        length: u32,
    },
    /// Write to a file.
    Write {
        /// The handle.
        handle: &'a [u8],
        /// Where, in bytes from the start.
        offset: u64,
        /// What.
        data: &'a [u8],
    },
}

impl<'a> DataRequest<'a> {
    /// Reads the body of a frame: the id, and the request. `None` when it is another request, or
    /// malformed: [`super::Request::decode`] tells which.
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
