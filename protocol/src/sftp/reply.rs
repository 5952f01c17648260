//! Replies.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Attributes,
    codec::{DecodeError, Field, Reader, Rest, Short, field, frames, put_frame, put_string},
};

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

frames! {
    /// One reply (draft-02, sections 4, 7 and 8).
    pub enum Reply: 2 {
        /// The first frame: the version to speak, and names and values of extensions.
        2 => Version {
            /// Protocol version.
            version: u32,
            /// Name and value of each extension.
            extensions: Vec<(Bytes, Bytes)> as Pairs,
        },
        /// Success, or an error.
        101 => Status {
            /// One of [`super::status`]; others may come.
            code: u32,
            /// A message for people.
            message: Bytes as StatusText,
        },
        /// The handle of an opened file or directory.
        102 => Handle {
            /// Opaque, at most [`super::MAX_HANDLE_BYTES`].
            handle: Bytes,
        },
        /// Data that were read, at least one byte; the end of the file is STATUS with EOF.
        103 => Data {
            /// The bytes.
            data: Bytes,
        },
        /// Names.
        104 => Names {
            /// At least one.
            names: Vec<Name> as Names,
        },
        /// Attributes.
        105 => Attributes {
            /// The attributes.
            attributes: Attributes,
        },
        /// The answer to an extension.
        201 => Extended {
            /// The rest of the frame.
            data: Bytes as Rest,
        },
    }
}

/// Names and values up to the end of the frame.
struct Pairs;

impl Pairs {
    fn put(value: &[(Bytes, Bytes)], out: &mut BytesMut) {
        value.iter().for_each(|pair| pair.put(out));
    }

    fn take(reader: &mut Reader) -> Result<Vec<(Bytes, Bytes)>, Short> {
        let mut pairs = Vec::new();
        while !reader.is_empty() {
            pairs.push(Field::take(reader)?);
        }
        Ok(pairs)
    }
}

/// The message of a status, and its language tag. Old servers leave the message out; some also the
/// language tag, which is ignored.
struct StatusText;

impl StatusText {
    fn put(value: &Bytes, out: &mut BytesMut) {
        value.put(out);
        put_string(out, b"");
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the other fields")]
    fn take(reader: &mut Reader) -> Result<Bytes, Short> {
        Ok(reader.string().unwrap_or_default())
    }
}

/// A counted list of names. No capacity is reserved: the count comes from the peer, the frame is the bound.
struct Names;

impl Names {
    fn put(value: &[Name], out: &mut BytesMut) {
        out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        for name in value {
            name.name.put(out);
            name.long_name.put(out);
            name.attributes.put(out);
        }
    }

    fn take(reader: &mut Reader) -> Result<Vec<Name>, Short> {
        let mut names = Vec::new();
        for _ in 0..reader.u32()? {
            names.push(Name {
                name: reader.string()?,
                long_name: reader.string()?,
                attributes: Field::take(reader)?,
            });
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: u8 = 104;

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
