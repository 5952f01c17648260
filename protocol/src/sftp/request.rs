//! Requests.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Attributes,
    codec::{DecodeError, Reader, Short, put_frame, put_string},
};

const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const EXTENDED: u8 = 200;

/// One request (draft-02, sections 4, 6 and 8). Paths are bytes without a NUL; `handle` is what
/// the server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The first frame: the highest version the client speaks.
    Init {
        /// Protocol version.
        version: u32,
    },
    /// Open a file.
    Open {
        /// Path of the file.
        path: Bytes,
        /// Bits of [`super::open_flags`].
        flags: u32,
        /// Attributes for a file that is created.
        attributes: Attributes,
    },
    /// Close a handle.
    Close {
        /// The handle.
        handle: Bytes,
    },
    /// Read from a file.
    Read {
        /// The handle.
        handle: Bytes,
        /// Offset in the file, in bytes.
        offset: u64,
        /// Most bytes to read.
        length: u32,
    },
    /// Write to a file.
    Write {
        /// The handle.
        handle: Bytes,
        /// Offset in the file, in bytes.
        offset: u64,
        /// The data.
        data: Bytes,
    },
    /// Attributes of a path, of a link itself.
    Lstat {
        /// The path.
        path: Bytes,
    },
    /// Attributes of an open file.
    Fstat {
        /// The handle.
        handle: Bytes,
    },
    /// Change attributes of a path.
    Setstat {
        /// The path.
        path: Bytes,
        /// Attributes to change.
        attributes: Attributes,
    },
    /// Change attributes of an open file.
    Fsetstat {
        /// The handle.
        handle: Bytes,
        /// Attributes to change.
        attributes: Attributes,
    },
    /// Open a directory to list it.
    Opendir {
        /// Its path.
        path: Bytes,
    },
    /// The next names of a directory.
    Readdir {
        /// The handle.
        handle: Bytes,
    },
    /// Remove a file.
    Remove {
        /// Its path.
        path: Bytes,
    },
    /// Create a directory.
    Mkdir {
        /// Its path.
        path: Bytes,
        /// Its attributes.
        attributes: Attributes,
    },
    /// Remove an empty directory.
    Rmdir {
        /// Its path.
        path: Bytes,
    },
    /// Canonicalize a path.
    Realpath {
        /// The path.
        path: Bytes,
    },
    /// Attributes of a path, links followed.
    Stat {
        /// The path.
        path: Bytes,
    },
    /// Rename; the new name must be free.
    Rename {
        /// The old path.
        from: Bytes,
        /// The new path.
        to: Bytes,
    },
    /// The target of a symbolic link.
    Readlink {
        /// The link.
        path: Bytes,
    },
    /// Create a symbolic link.
    Symlink {
        /// The target.
        target: Bytes,
        /// Path of the new link.
        link: Bytes,
    },
    /// A vendor-specific extension.
    Extended {
        /// Its name, such as `posix-rename@openssh.com`.
        name: Bytes,
        /// The rest of the frame.
        data: Bytes,
    },
}

impl Request {
    /// Decodes the body of a frame: id and request. INIT has the id 0.
    ///
    /// # Errors
    ///
    /// [`DecodeError::UnknownType`] or [`DecodeError::Malformed`]; after both, the next frame can be read.
    pub fn decode(frame: Bytes) -> Result<(u32, Self), DecodeError> {
        let mut reader = Reader(frame);
        let kind = reader.u8().unwrap_or(0);
        if kind == INIT {
            return match reader.u32() {
                // A server may ignore the extensions of a client.
                Ok(version) => Ok((0, Self::Init { version })),
                Err(Short) => Err(DecodeError::Malformed { kind, id: None }),
            };
        }
        let id = reader.u32().ok();
        match (id, Self::take(kind, &mut reader)) {
            (Some(id), Some(Ok(request))) => Ok((id, request)),
            (id, None) => Err(DecodeError::UnknownType { kind, id }),
            (id, Some(_)) => Err(DecodeError::Malformed { kind, id }),
        }
    }

    /// Reads what follows the id; `None` for an unknown type.
    fn take(kind: u8, reader: &mut Reader) -> Option<Result<Self, Short>> {
        Some(match kind {
            OPEN => Self::take_open(reader),
            CLOSE => reader.string().map(|handle| Self::Close { handle }),
            READ => Self::take_read(reader),
            WRITE => Self::take_write(reader),
            LSTAT => reader.string().map(|path| Self::Lstat { path }),
            FSTAT => reader.string().map(|handle| Self::Fstat { handle }),
            SETSTAT => with_attributes(reader, |path, attributes| Self::Setstat {
                path,
                attributes,
            }),
            FSETSTAT => with_attributes(reader, |handle, attributes| Self::Fsetstat {
                handle,
                attributes,
            }),
            OPENDIR => reader.string().map(|path| Self::Opendir { path }),
            READDIR => reader.string().map(|handle| Self::Readdir { handle }),
            REMOVE => reader.string().map(|path| Self::Remove { path }),
            // Some clients leave out the attributes of MKDIR; that costs nothing to accept.
            MKDIR => reader.string().and_then(|path| {
                let attributes = if reader.is_empty() {
                    Attributes::default()
                } else {
                    Attributes::take(reader)?
                };
                Ok(Self::Mkdir { path, attributes })
            }),
            RMDIR => reader.string().map(|path| Self::Rmdir { path }),
            REALPATH => reader.string().map(|path| Self::Realpath { path }),
            STAT => reader.string().map(|path| Self::Stat { path }),
            RENAME => two_strings(reader, |from, to| Self::Rename { from, to }),
            READLINK => reader.string().map(|path| Self::Readlink { path }),
            SYMLINK => two_strings(reader, |target, link| Self::Symlink { target, link }),
            EXTENDED => reader.string().map(|name| Self::Extended {
                name,
                data: reader.rest(),
            }),
            _ => return None,
        })
    }

    fn take_open(reader: &mut Reader) -> Result<Self, Short> {
        Ok(Self::Open {
            path: reader.string()?,
            flags: reader.u32()?,
            attributes: Attributes::take(reader)?,
        })
    }

    fn take_read(reader: &mut Reader) -> Result<Self, Short> {
        Ok(Self::Read {
            handle: reader.string()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }

    fn take_write(reader: &mut Reader) -> Result<Self, Short> {
        Ok(Self::Write {
            handle: reader.string()?,
            offset: reader.u64()?,
            data: reader.string()?,
        })
    }

    /// Appends the whole frame to `out`. INIT has no id; `id` is ignored for it.
    ///
    /// # Panics
    ///
    /// When a name or the data is longer than 4 GiB.
    pub fn encode(&self, id: u32, out: &mut BytesMut) {
        put_frame(out, |out| {
            out.put_u8(self.kind());
            match self {
                Self::Init { version } => out.put_u32(*version),
                _ => out.put_u32(id),
            }
            self.put_body(out);
        });
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Init { .. } => INIT,
            Self::Open { .. } => OPEN,
            Self::Close { .. } => CLOSE,
            Self::Read { .. } => READ,
            Self::Write { .. } => WRITE,
            Self::Lstat { .. } => LSTAT,
            Self::Fstat { .. } => FSTAT,
            Self::Setstat { .. } => SETSTAT,
            Self::Fsetstat { .. } => FSETSTAT,
            Self::Opendir { .. } => OPENDIR,
            Self::Readdir { .. } => READDIR,
            Self::Remove { .. } => REMOVE,
            Self::Mkdir { .. } => MKDIR,
            Self::Rmdir { .. } => RMDIR,
            Self::Realpath { .. } => REALPATH,
            Self::Stat { .. } => STAT,
            Self::Rename { .. } => RENAME,
            Self::Readlink { .. } => READLINK,
            Self::Symlink { .. } => SYMLINK,
            Self::Extended { .. } => EXTENDED,
        }
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Init { .. } => {}
            Self::Open {
                path,
                flags,
                attributes,
            } => {
                put_string(out, path);
                out.put_u32(*flags);
                attributes.put(out);
            }
            Self::Read {
                handle,
                offset,
                length,
            } => {
                put_string(out, handle);
                out.put_u64(*offset);
                out.put_u32(*length);
            }
            Self::Write {
                handle,
                offset,
                data,
            } => {
                put_string(out, handle);
                out.put_u64(*offset);
                put_string(out, data);
            }
            Self::Close { handle: name }
            | Self::Fstat { handle: name }
            | Self::Readdir { handle: name }
            | Self::Lstat { path: name }
            | Self::Opendir { path: name }
            | Self::Remove { path: name }
            | Self::Rmdir { path: name }
            | Self::Realpath { path: name }
            | Self::Stat { path: name }
            | Self::Readlink { path: name } => put_string(out, name),
            Self::Setstat {
                path: name,
                attributes,
            }
            | Self::Fsetstat {
                handle: name,
                attributes,
            }
            | Self::Mkdir {
                path: name,
                attributes,
            } => {
                put_string(out, name);
                attributes.put(out);
            }
            Self::Rename {
                from: first,
                to: second,
            }
            | Self::Symlink {
                target: first,
                link: second,
            } => {
                put_string(out, first);
                put_string(out, second);
            }
            Self::Extended { name, data } => {
                put_string(out, name);
                out.put_slice(data);
            }
        }
    }
}

fn two_strings(
    reader: &mut Reader,
    build: impl FnOnce(Bytes, Bytes) -> Request,
) -> Result<Request, Short> {
    Ok(build(reader.string()?, reader.string()?))
}

fn with_attributes(
    reader: &mut Reader,
    build: impl FnOnce(Bytes, Attributes) -> Request,
) -> Result<Request, Short> {
    Ok(build(reader.string()?, Attributes::take(reader)?))
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
