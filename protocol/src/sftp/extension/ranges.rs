//! Messages of our own extensions [`HASH`](super::HASH) and [`HOLES`](super::HOLES).

use bytes::{BufMut, Bytes, BytesMut};

use super::{Field, MalformedExtension, Reader, Short, field};

/// Most holes in one [`Holes`].
pub const MAX_HOLES: usize = 1000;

/// Request of [`HASH`](super::HASH).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashRange {
    /// The file, open for reading or for writing.
    pub handle: Bytes,
    /// Where the range starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; it ends at the end of the file at the latest.
    pub length: u64,
}

in_order!(HashRange: handle, offset, length);

/// Answer to [`HASH`](super::HASH).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeHash {
    /// Bytes that were hashed.
    pub length: u64,
    /// Their BLAKE3 hash.
    pub hash: [u8; 32],
}

impl RangeHash {
    /// The data of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + self.hash.len());
        out.put_u64(self.length);
        out.put_slice(&self.hash);
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let length = reader.u64()?;
        let hash = reader.rest();
        Ok(Self {
            length,
            hash: hash[..].try_into().map_err(|_| MalformedExtension)?,
        })
    }
}

/// Request of [`HOLES`](super::HOLES).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolesFrom {
    /// The file.
    pub handle: Bytes,
    /// Where to start looking, in bytes.
    pub offset: u64,
}

in_order!(HolesFrom: handle, offset);

/// Answer to [`HOLES`](super::HOLES): the holes between the offset of the request and [`Self::end`], in order.
/// What is not a hole is data. All in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holes {
    /// Up to where this map goes: the size of the file, or less after [`MAX_HOLES`]: the
    /// client must ask for the rest.
    pub end: u64,
    /// The size of the file at that time.
    pub size: u64,
    /// Offset and length of each hole.
    pub holes: Vec<(u64, u64)>,
}

impl Holes {
    /// The data of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16 + 16 * self.holes.len());
        out.put_u64(self.end);
        out.put_u64(self.size);
        for (offset, length) in &self.holes {
            out.put_u64(*offset);
            out.put_u64(*length);
        }
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when the holes overlap, are out of order, empty or beyond
    /// `end`, or more than [`MAX_HOLES`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let (end, size) = (reader.u64()?, reader.u64()?);
        let mut holes = Vec::new();
        let mut after = 0;
        while !reader.is_empty() {
            let (offset, length) = (reader.u64()?, reader.u64()?);
            let next = offset.checked_add(length).ok_or(MalformedExtension)?;
            if offset < after || length == 0 || next > end || holes.len() == MAX_HOLES {
                return Err(MalformedExtension);
            }
            after = next;
            holes.push((offset, length));
        }
        if end <= size {
            Ok(Self { end, size, holes })
        } else {
            Err(MalformedExtension)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{bytes, survives},
        *,
    };

    #[test]
    fn requests_and_hashes_are_read_as_written_and_refused_when_cut() {
        let range = HashRange {
            handle: bytes("h"),
            offset: 1,
            length: 2,
        };
        survives(range.clone(), range.encode(), HashRange::decode);
        let from = HolesFrom {
            handle: bytes("h"),
            offset: 1,
        };
        survives(from.clone(), from.encode(), HolesFrom::decode);
        let hash = RangeHash {
            length: 5,
            hash: [7; 32],
        };
        survives(hash, hash.encode(), RangeHash::decode);
    }

    #[test]
    fn a_map_of_holes_is_read_as_written() {
        let holes = Holes {
            end: 100,
            size: 200,
            holes: vec![(0, 10), (20, 30)],
        };
        assert_eq!(Holes::decode(holes.encode()), Ok(holes));
    }

    #[test]
    fn a_map_of_holes_that_lies_is_refused() {
        for holes in [
            vec![(0, 0)],
            vec![(10, 5), (0, 5)],
            vec![(0, 10), (5, 10)],
            vec![(90, 20)],
            vec![(u64::MAX, 2)],
        ] {
            let map = Holes {
                end: 100,
                size: 100,
                holes,
            };
            assert_eq!(Holes::decode(map.encode()), Err(MalformedExtension));
        }
        let beyond = Holes {
            end: 2,
            size: 1,
            holes: Vec::new(),
        };
        assert_eq!(Holes::decode(beyond.encode()), Err(MalformedExtension));
    }
}
