//! What it does on connections that HTTP handed over: `WebSockets` and SFTP.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use vsock_agent_protocol::sftp::{Attributes, Name, Owner, Reply, Request, Times, status};

use super::{Connection, Manner, text::hostile_text};
use crate::fuzz::hostile::{Script, answer, read_request};

/// Names in one reply of an endless listing.
const NAMES: usize = 500;

/// Bytes of each: nearly as long as a file system allows (`NAME_MAX`), so that few fill the memory.
const NAME_BYTES: usize = 250;

/// Entries of an endless listing among other misdeeds.
const FEW_ENTRIES: usize = 20_000;

/// What they are: mostly directories and files, and some links.
const KINDS: [u32; 7] = [
    0o040_755, 0o100_644, 0o040_755, 0o100_644, 0o040_755, 0o100_644, 0o120_777,
];

impl Connection {
    /// Frames, most of them sound.
    pub(super) fn websocket(&mut self) -> io::Result<()> {
        for _ in 0..self.random.below(40) {
            let words = hostile_text(&mut self.random);
            let words = words.as_bytes();
            let frame = match self
                .random
                .below(if self.bad_percent == 0 { 3 } else { 16 })
            {
                0 => frame(0x82, words),
                1 => frame(0x81, b""),
                2 => frame(0x8a, b"alive?"),
                3 => frame(0x89, &words[..words.len().min(125)]),
                4 => frame(0x88, b"\x03\xe8bye"),
                // Longer than anybody can hold, and nothing of it.
                5 => vec![0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                6 => vec![0x82, 127, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff, 1, 2, 3],
                // Masked, reserved bits, an unknown kind, a long ping.
                7 => vec![0x82, 0x81, 1, 2, 3, 4, 5],
                8 => frame(0xf2, b"x"),
                9 => frame(0x83, b"x"),
                10 => frame(0x89, &[b'p'; 300]),
                // Text that is none, and a message that never ends.
                11 => frame(0x81, b"\xff\xfe"),
                12 => return self.endless("", "\x02\x04endl\x00\x04ess."),
                13 => return self.endless("", "\u{2}\u{0}"),
                14 => return self.linger(),
                _ => (0..self.random.below(50))
                    .map(|_| self.random.byte())
                    .collect(),
            };
            self.stream.write_all(&frame)?;
        }
        if self.random.percent(50) {
            return Ok(());
        }
        self.linger()
    }

    /// Replies, most of which fit the request.
    pub(super) fn sftp(&mut self) -> io::Result<()> {
        if let Manner::EndlessListings { entries } = self.manner {
            return self.list(entries);
        }
        match self.random.below(10) {
            0 => {
                let lengths = [
                    [0xff; 4],
                    [0x7f, 0xff, 0xff, 0xff],
                    [0, 0, 0, 0],
                    [0, 4, 0, 1],
                ];
                let length = *self.random.pick(&lengths);
                self.stream.write_all(&length)?;
                self.endless("", "any bytes ")
            }
            1 => self.linger(),
            2 => self.list(FEW_ENTRIES),
            _ => {
                let length = 20 + self.random.below(400);
                let bytes: Vec<u8> = (0..length).map(|_| self.random.byte()).collect();
                answer(&mut self.stream, Script::new(&bytes, "../outside".into()))
            }
        }
    }

    /// Answers well, with `entries` in all; none of the directories has an end.
    fn list(&mut self, entries: usize) -> io::Result<()> {
        let mut out = BytesMut::new();
        let mut number = 0_usize;
        while number < entries {
            let (id, request) = read_request(&mut self.stream)?;
            let attributes = Attributes {
                size: Some(u64::MAX),
                permissions: Some(0o040_755),
                owner: Some(Owner { uid: 0, gid: 0 }),
                times: Some(Times {
                    accessed: 0,
                    modified: 0,
                }),
                extended: Vec::new(),
            };
            let reply = match request {
                Request::Init { .. } => Reply::Version {
                    version: 3,
                    extensions: Vec::new(),
                },
                Request::Opendir { .. } => Reply::Handle {
                    handle: Bytes::from_static(b"h"),
                },
                Request::Readdir { .. } => Reply::Names {
                    names: (0..NAMES)
                        .map(|_| {
                            number += 1;
                            Name {
                                name: format!("\u{9b}{number:0NAME_BYTES$}").into(),
                                long_name: Bytes::new(),
                                attributes: Attributes {
                                    permissions: Some(KINDS[number % KINDS.len()]),
                                    ..attributes.clone()
                                },
                            }
                        })
                        .collect(),
                },
                Request::Stat { .. } | Request::Lstat { .. } | Request::Fstat { .. } => {
                    Reply::Attributes { attributes }
                }
                Request::Realpath { .. } | Request::Readlink { .. } => Reply::Names {
                    names: vec![Name {
                        name: Bytes::from_static(b"/x"),
                        long_name: Bytes::new(),
                        attributes: Attributes::default(),
                    }],
                },
                _ => Reply::Status {
                    code: status::OK,
                    message: Bytes::new(),
                },
            };
            reply.encode(id, &mut out);
            self.stream.write_all(&out.split())?;
        }
        Ok(())
    }
}

/// A frame that is not masked (RFC 6455, section 5.2).
fn frame(first: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u16::try_from(data.len()) {
        Ok(length) if length < 126 => frame.push(length.to_be_bytes()[1]),
        Ok(length) => {
            frame.push(126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend(u64::try_from(data.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend(data);
    frame
}
