//! Messages of our own extension [`OPEN_PART`](super::OPEN_PART): files under a temporary name until
//! they are complete.

use bytes::Bytes;

use super::{Field, Limited, Reader, Short, field};

/// Most names in one request.
pub const MAX_PART_NAMES: usize = 16;

/// Request of [`OPEN_PART`](super::OPEN_PART): opens a file for reading and writing under one of
/// several names, locked (`flock(2)`) until its handle is closed.
///
/// A file that has one of the names and is not locked is *abandoned*, if it is a regular file of the
/// session's own user without another name. Abandoned files are removed. With `keep` the longest that
/// no other user may write to is opened with its content instead. Else a new file
/// of mode 0600 is created under the first name that is free. Other files are not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPart {
    /// The directory of all of them.
    pub directory: Bytes,
    /// At most [`MAX_PART_NAMES`]; each one component.
    pub names: Vec<Bytes>,
    /// Whether to continue with the longest abandoned file.
    pub keep: bool,
}

in_order!(OpenPart: directory, keep, names as PartNames);

type PartNames = Limited<Bytes, MAX_PART_NAMES>;

/// Answer to [`OPEN_PART`](super::OPEN_PART).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedPart {
    /// The handle of the file.
    pub handle: Bytes,
    /// Index of the name it has, from 0.
    pub name: u32,
    /// Its length, in bytes.
    pub length: u64,
}

in_order!(OpenedPart: handle, name, length);

#[cfg(test)]
mod tests {
    use super::{
        super::{
            MalformedExtension,
            tests::{bytes, survives},
        },
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
