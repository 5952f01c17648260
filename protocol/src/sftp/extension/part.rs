//! Files under a temporary name until they are whole: what our own extension
//! [`OPEN_PART`](super::OPEN_PART) says.

use bytes::{BufMut, Bytes, BytesMut};

use super::{super::codec::put_string, MalformedExtension, Reader};

/// Most names in one request.
pub const MAX_PART_NAMES: usize = 16;

/// Request of [`OPEN_PART`](super::OPEN_PART): opens a file for reading and writing under one of
/// several names, locked (`flock(2)`) until its handle is closed.
///
/// A file that has one of the names and is not locked is *abandoned*, if it is a regular file of the
/// session's own user without another name. What is abandoned is removed, but for the longest that
/// nobody else may write to if `keep` says so: that one is opened with its content. Else a new file
/// of mode 0600 is created under the first name that is free. What is not abandoned stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPart {
    /// The directory of all of them.
    pub directory: Bytes,
    /// At most [`MAX_PART_NAMES`]; each one component.
    pub names: Vec<Bytes>,
    /// Whether to go on with the longest that is abandoned.
    pub keep: bool,
}

impl OpenPart {
    /// The data of the request.
    ///
    /// # Panics
    ///
    /// When something is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.directory);
        out.put_u32(u32::from(self.keep));
        out.put_u32(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        for name in &self.names {
            put_string(&mut out, name);
        }
        out.freeze()
    }

    /// Reads the data of a request.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`], also when there are more than [`MAX_PART_NAMES`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        let directory = reader.string()?;
        let keep = reader.u32()? != 0;
        let count = usize::try_from(reader.u32()?).map_err(|_| MalformedExtension)?;
        if count > MAX_PART_NAMES {
            return Err(MalformedExtension);
        }
        let mut names = Vec::with_capacity(count);
        for _ in 0..count {
            names.push(reader.string()?);
        }
        Ok(Self {
            directory,
            names,
            keep,
        })
    }
}

/// Answer to [`OPEN_PART`](super::OPEN_PART).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedPart {
    /// The handle of the file.
    pub handle: Bytes,
    /// Which of the names it has, counted from 0.
    pub name: u32,
    /// Bytes that are in it already.
    pub length: u64,
}

impl OpenedPart {
    /// The data of the reply.
    ///
    /// # Panics
    ///
    /// When the handle is longer than 4 GiB.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_string(&mut out, &self.handle);
        out.put_u32(self.name);
        out.put_u64(self.length);
        out.freeze()
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let mut reader = Reader(data);
        Ok(Self {
            handle: reader.string()?,
            name: reader.u32()?,
            length: reader.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{bytes, survives},
        *,
    };

    #[test]
    fn requests_and_replies_survive() {
        let request = OpenPart {
            directory: bytes("/d"),
            names: vec![bytes("one"), bytes("two")],
            keep: true,
        };
        survives(request.clone(), request.encode(), OpenPart::decode);
        let reply = OpenedPart {
            handle: bytes("handle"),
            name: 1,
            length: 7,
        };
        survives(reply.clone(), reply.encode(), OpenedPart::decode);
    }

    #[test]
    fn too_many_names_are_refused() {
        let request = OpenPart {
            directory: bytes("/d"),
            names: vec![bytes("x"); MAX_PART_NAMES + 1],
            keep: false,
        };
        assert_eq!(OpenPart::decode(request.encode()), Err(MalformedExtension));
    }
}
