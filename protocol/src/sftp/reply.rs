//! Replies.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Attributes,
    codec::{DecodeError, Reader, Short, put_frame, put_string},
};

const VERSION: u8 = 2;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// One entry of a listing, or the one path of REALPATH and READLINK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name: one component in a listing. A client must not trust it.
    pub name: Bytes,
    /// A line like that of `ls -l`, for people.
    pub long_name: Bytes,
    /// Attributes of the file, of a link itself.
    pub attributes: Attributes,
}

/// One reply (draft-02, sections 4, 7 and 8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The first frame: the version to speak, and names and values of extensions.
    Version {
        /// Protocol version.
        version: u32,
        /// Name and value of each extension.
        extensions: Vec<(Bytes, Bytes)>,
    },
    /// Success, or an error.
    Status {
        /// One of [`super::status`]; others may come.
        code: u32,
        /// A message for people.
        message: Bytes,
    },
    /// The handle of an opened file or directory.
    Handle {
        /// Opaque, at most [`super::MAX_HANDLE_BYTES`].
        handle: Bytes,
    },
    /// Data that were read, at least one byte; the end of the file is STATUS with EOF.
    Data {
        /// The bytes.
        data: Bytes,
    },
    /// Names.
    Names {
        /// At least one.
        names: Vec<Name>,
    },
    /// Attributes.
    Attributes {
        /// The attributes.
        attributes: Attributes,
    },
    /// The answer to an extension.
    Extended {
        /// The rest of the frame.
        data: Bytes,
    },
}

impl Reply {
    /// Decodes the body of a frame: id and reply. VERSION has the id 0.
    ///
    /// # Errors
    ///
    /// [`DecodeError::UnknownType`] or [`DecodeError::Malformed`].
    pub fn decode(frame: Bytes) -> Result<(u32, Self), DecodeError> {
        let mut reader = Reader(frame);
        let kind = reader.u8().unwrap_or(0);
        if kind == VERSION {
            return Self::take_version(&mut reader)
                .map(|reply| (0, reply))
                .map_err(|Short| DecodeError::Malformed { kind, id: None });
        }
        let id = reader.u32().ok();
        match (id, Self::take(kind, &mut reader)) {
            (Some(id), Some(Ok(reply))) => Ok((id, reply)),
            (id, None) => Err(DecodeError::UnknownType { kind, id }),
            (id, Some(_)) => Err(DecodeError::Malformed { kind, id }),
        }
    }

    fn take(kind: u8, reader: &mut Reader) -> Option<Result<Self, Short>> {
        Some(match kind {
            STATUS => reader.u32().map(|code| Self::Status {
                code,
                // Old servers leave the text out; some also the language tag, which is ignored.
                message: reader.string().unwrap_or_default(),
            }),
            HANDLE => reader.string().map(|handle| Self::Handle { handle }),
            DATA => reader.string().map(|data| Self::Data { data }),
            NAME => Self::take_names(reader),
            ATTRS => Attributes::take(reader).map(|attributes| Self::Attributes { attributes }),
            EXTENDED_REPLY => Ok(Self::Extended {
                data: reader.rest(),
            }),
            _ => return None,
        })
    }

    fn take_version(reader: &mut Reader) -> Result<Self, Short> {
        let version = reader.u32()?;
        let mut extensions = Vec::new();
        while !reader.is_empty() {
            extensions.push((reader.string()?, reader.string()?));
        }
        Ok(Self::Version {
            version,
            extensions,
        })
    }

    fn take_names(reader: &mut Reader) -> Result<Self, Short> {
        let mut names = Vec::new();
        // No capacity is reserved: the count comes from the peer, the frame is the bound.
        for _ in 0..reader.u32()? {
            names.push(Name {
                name: reader.string()?,
                long_name: reader.string()?,
                attributes: Attributes::take(reader)?,
            });
        }
        Ok(Self::Names { names })
    }

    /// Appends the whole frame to `out`. VERSION has no id; `id` is ignored for it.
    ///
    /// # Panics
    ///
    /// When a name or the data is longer than 4 GiB.
    pub fn encode(&self, id: u32, out: &mut BytesMut) {
        put_frame(out, |out| {
            out.put_u8(self.kind());
            if !matches!(self, Self::Version { .. }) {
                out.put_u32(id);
            }
            self.put_body(out);
        });
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Version { .. } => VERSION,
            Self::Status { .. } => STATUS,
            Self::Handle { .. } => HANDLE,
            Self::Data { .. } => DATA,
            Self::Names { .. } => NAME,
            Self::Attributes { .. } => ATTRS,
            Self::Extended { .. } => EXTENDED_REPLY,
        }
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Self::Version {
                version,
                extensions,
            } => {
                out.put_u32(*version);
                for (name, value) in extensions {
                    put_string(out, name);
                    put_string(out, value);
                }
            }
            Self::Status { code, message } => {
                out.put_u32(*code);
                put_string(out, message);
                put_string(out, b"");
            }
            Self::Handle { handle } => put_string(out, handle),
            Self::Data { data } => put_string(out, data),
            Self::Names { names } => {
                out.put_u32(u32::try_from(names.len()).unwrap_or(u32::MAX));
                for name in names {
                    put_string(out, &name.name);
                    put_string(out, &name.long_name);
                    name.attributes.put(out);
                }
            }
            Self::Attributes { attributes } => attributes.put(out),
            Self::Extended { data } => out.put_slice(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_is_read_as_it_was_written() {
        let text = Bytes::from_static(b"\xfftext");
        let attributes = Attributes {
            size: Some(1),
            ..Attributes::default()
        };
        let name = Name {
            name: text.clone(),
            long_name: text.clone(),
            attributes: attributes.clone(),
        };
        let replies = [
            Reply::Status {
                code: 4,
                message: text.clone(),
            },
            Reply::Handle {
                handle: text.clone(),
            },
            Reply::Data { data: text.clone() },
            Reply::Names {
                names: vec![name.clone(), name],
            },
            Reply::Attributes { attributes },
            Reply::Extended { data: text.clone() },
        ];
        for reply in replies {
            let mut out = BytesMut::new();
            reply.encode(7, &mut out);
            assert_eq!(Reply::decode(out.freeze().slice(4..)).unwrap(), (7, reply));
        }
        let version = Reply::Version {
            version: 3,
            extensions: vec![(text.clone(), text)],
        };
        let mut out = BytesMut::new();
        version.encode(0, &mut out);
        assert_eq!(
            Reply::decode(out.freeze().slice(4..)).unwrap(),
            (0, version)
        );
    }

    #[test]
    fn a_listing_that_lies_about_its_length_is_malformed() {
        let frame = Bytes::from_static(&[NAME, 0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(
            Reply::decode(frame),
            Err(DecodeError::Malformed {
                kind: NAME,
                id: Some(7)
            })
        );
    }
}
