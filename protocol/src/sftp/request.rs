//! Requests.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Attributes,
    codec::{DecodeError, Field, Reader, Rest, Short, field, frames, put_frame},
};

frames! {
    /// One request (draft-02, sections 4, 6 and 8). Paths are bytes without a NUL; `handle` is what
    /// the server gave. A server may ignore the extensions in INIT.
    pub enum Request: 1 {
        /// The first frame: the highest version the client speaks.
        1 => Init {
            /// Protocol version.
            version: u32,
        },
        /// Open a file.
        3 => Open {
            /// Path of the file.
            path: Bytes,
            /// Bits of [`super::open_flags`].
            flags: u32,
            /// Attributes for a file that is created.
            attributes: Attributes,
        },
        /// Close a handle.
        4 => Close {
            /// The handle.
            handle: Bytes,
        },
        /// Read from a file.
        5 => Read {
            /// The handle.
            handle: Bytes,
            /// Offset in the file, in bytes.
            offset: u64,
            /// Most bytes to read.
            length: u32,
        },
        /// Write to a file.
        6 => Write {
            /// The handle.
            handle: Bytes,
            /// Offset in the file, in bytes.
            offset: u64,
            /// The data.
            data: Bytes,
        },
        /// Attributes of a path, of a link itself.
        7 => Lstat {
            /// The path.
            path: Bytes,
        },
        /// Attributes of an open file.
        8 => Fstat {
            /// The handle.
            handle: Bytes,
        },
        /// Change attributes of a path.
        9 => Setstat {
            /// The path.
            path: Bytes,
            /// Attributes to change.
            attributes: Attributes,
        },
        /// Change attributes of an open file.
        10 => Fsetstat {
            /// The handle.
            handle: Bytes,
            /// Attributes to change.
            attributes: Attributes,
        },
        /// Open a directory to list it.
        11 => Opendir {
            /// Its path.
            path: Bytes,
        },
        /// The next names of a directory.
        12 => Readdir {
            /// The handle.
            handle: Bytes,
        },
        /// Remove a file.
        13 => Remove {
            /// Its path.
            path: Bytes,
        },
        /// Create a directory.
        14 => Mkdir {
            /// Its path.
            path: Bytes,
            /// Its attributes.
            attributes: Attributes as OptionalAttributes,
        },
        /// Remove an empty directory.
        15 => Rmdir {
            /// Its path.
            path: Bytes,
        },
        /// Canonicalize a path.
        16 => Realpath {
            /// The path.
            path: Bytes,
        },
        /// Attributes of a path, links followed.
        17 => Stat {
            /// The path.
            path: Bytes,
        },
        /// Rename; the new name must be free.
        18 => Rename {
            /// The old path.
            from: Bytes,
            /// The new path.
            to: Bytes,
        },
        /// The target of a symbolic link.
        19 => Readlink {
            /// The link.
            path: Bytes,
        },
        /// Create a symbolic link.
        20 => Symlink {
            /// The target.
            target: Bytes,
            /// Path of the new link.
            link: Bytes,
        },
        /// A vendor-specific extension.
        200 => Extended {
            /// Its name, such as `posix-rename@openssh.com`.
            name: Bytes,
            /// The rest of the frame.
            data: Bytes as Rest,
        },
    }
}

/// Some clients leave out the attributes of MKDIR; that costs nothing to accept.
struct OptionalAttributes;

impl OptionalAttributes {
    fn put(value: &Attributes, out: &mut BytesMut) {
        value.put(out);
    }

    fn take(reader: &mut Reader) -> Result<Attributes, Short> {
        if reader.is_empty() {
            Ok(Attributes::default())
        } else {
            Field::take(reader)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sftp::{Owner, Times};

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn every_kind() -> Vec<Request> {
        let attributes = Attributes {
            size: Some(7),
            owner: Some(Owner { uid: 1, gid: 2 }),
            permissions: Some(0o644),
            times: Some(Times {
                accessed: 3,
                modified: 4,
            }),
            extended: vec![(bytes("a@b"), bytes("c"))],
        };
        let path = bytes("/p");
        let handle = bytes("h");
        vec![
            Request::Open {
                path: path.clone(),
                flags: 3,
                attributes: attributes.clone(),
            },
            Request::Close {
                handle: handle.clone(),
            },
            Request::Read {
                handle: handle.clone(),
                offset: u64::MAX,
                length: 9,
            },
            Request::Write {
                handle: handle.clone(),
                offset: 1,
                data: bytes("data"),
            },
            Request::Lstat { path: path.clone() },
            Request::Fstat {
                handle: handle.clone(),
            },
            Request::Setstat {
                path: path.clone(),
                attributes: attributes.clone(),
            },
            Request::Fsetstat {
                handle: handle.clone(),
                attributes: attributes.clone(),
            },
            Request::Opendir { path: path.clone() },
            Request::Readdir { handle },
            Request::Remove { path: path.clone() },
            Request::Mkdir {
                path: path.clone(),
                attributes,
            },
            Request::Rmdir { path: path.clone() },
            Request::Realpath { path: path.clone() },
            Request::Stat { path: path.clone() },
            Request::Rename {
                from: path.clone(),
                to: bytes("/q"),
            },
            Request::Readlink { path: path.clone() },
            Request::Symlink {
                target: bytes("t"),
                link: path,
            },
            Request::Extended {
                name: bytes("x@y"),
                data: bytes("rest"),
            },
        ]
    }

    #[test]
    fn every_request_is_read_as_it_was_written() {
        for request in every_kind() {
            let mut out = BytesMut::new();
            request.encode(42, &mut out);
            let frame = out.freeze().slice(4..);
            assert_eq!(Request::decode(frame).unwrap(), (42, request));
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_malformed_and_keeps_its_id() {
        for request in every_kind() {
            let mut out = BytesMut::new();
            request.encode(42, &mut out);
            let frame = out.freeze().slice(4..);
            for end in 5..frame.len() {
                match Request::decode(frame.slice(..end)) {
                    Err(DecodeError::Malformed { id: Some(42), .. }) => {}
                    // The tail of an extension is its own business, and MKDIR may end early.
                    Ok((42, Request::Extended { .. } | Request::Mkdir { .. })) => {}
                    other => panic!("{request:?} cut at {end}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn an_unknown_type_keeps_its_id() {
        let frame = Bytes::from_static(&[99, 0, 0, 0, 7, 1, 2]);
        assert_eq!(
            Request::decode(frame),
            Err(DecodeError::UnknownType {
                kind: 99,
                id: Some(7)
            })
        );
    }

    #[test]
    fn the_target_of_a_link_comes_first() {
        let mut out = BytesMut::new();
        Request::Symlink {
            target: bytes("t"),
            link: bytes("l"),
        }
        .encode(1, &mut out);
        assert_eq!(&out[9..], [0, 0, 0, 1, b't', 0, 0, 0, 1, b'l']);
    }
}
