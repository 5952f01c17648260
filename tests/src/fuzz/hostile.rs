//! A server of SFTP that answers as a script says: mostly with what fits the request, and with
//! names, sizes and kinds that no honest server would send.

use std::{
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::PathBuf,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use vsock_agent_protocol::sftp::{
    Attributes, Name, Owner, Reply, Request, Times, extension, status,
};

/// Most replies to one client, so that a script that repeats itself ends.
const MAX_REPLIES: usize = 2_000;

/// How long a client may think. One that asks for nothing waits for what this server owes it, and
/// would do so until its patience ends, which is too long for a test.
const SILENCE: Duration = Duration::from_millis(100);

/// Names in a listing. One more is a path to where nothing may be written.
const NAMES: &[&[u8]] = &[
    b"file",
    b"folder",
    b"link",
    b"new",
    b"other",
    b"..",
    b".",
    b"",
    b"a/b",
    b"../outside/x",
    b"nul\0",
    b"\x1b[2J\x07",
    b"\xff\xfe",
    b"-rf",
    b"line\nline",
    b".file.part",
    b"folder/file",
    &[b'n'; 255],
    &[b'n'; 300],
    &[b'n'; 70_000],
    b"\xc2\x9b31mred",
    b"\xe2\x80\xaegpj.exe",
];

/// Where links lead.
const TARGETS: &[&[u8]] = &[
    b"..",
    b"../outside",
    b"/",
    b"",
    b"link",
    b"folder",
    &[b't'; 5000],
];

/// What files say they are: folder, file, link, pipe, device, socket, setuid file, nothing.
const MODES: &[Option<u32>] = &[
    Some(0o040_755),
    Some(0o100_644),
    Some(0o100_000),
    Some(0o120_777),
    Some(0o010_644),
    Some(0o020_644),
    Some(0o140_644),
    Some(0o104_777),
    None,
];

/// How long files say they are.
const SIZES: &[Option<u64>] = &[
    Some(0),
    Some(5),
    Some(5000),
    Some(1 << 40),
    Some(u64::MAX),
    None,
];

/// What is left to say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    bytes: Vec<u8>,
    at: usize,
    outside: PathBuf,
}

impl Script {
    /// The first byte says which extensions there are, the second whether all repeats itself.
    pub(crate) fn new(bytes: &[u8], outside: PathBuf) -> Self {
        Self {
            bytes: bytes.to_owned(),
            at: 0,
            outside,
        }
    }

    fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    fn some(&mut self, most: usize) -> Vec<u8> {
        let count = usize::from(self.byte()).min(most);
        (0..count).map(|_| self.byte()).collect()
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()].clone()
    }

    fn path(&mut self, from: &[&'static [u8]]) -> Bytes {
        match self.byte() {
            255 => Bytes::copy_from_slice(self.outside.join("file").as_os_str().as_bytes()),
            number => Bytes::from_static(from[usize::from(number) % from.len()]),
        }
    }

    fn attributes(&mut self) -> Attributes {
        let time = self.pick(&[None, Some(0), Some(u32::MAX)]);
        Attributes {
            size: self.pick(SIZES),
            permissions: self.pick(MODES),
            times: time.map(|time| Times {
                accessed: time,
                modified: time,
            }),
            owner: self
                .pick(&[None, Some(0), Some(65534)])
                .map(|id| Owner { uid: id, gid: id }),
            extended: Vec::new(),
        }
    }

    fn names(&mut self, from: &[&'static [u8]], count: usize) -> Reply {
        let names = (0..count).map(|_| {
            let name = self.path(from);
            Name {
                long_name: name.clone(),
                name,
                attributes: self.attributes(),
            }
        });
        let names = names.collect();
        Reply::Names { names }
    }

    /// What fits the request, by its kind.
    fn fitting(&mut self, request: &Request) -> Reply {
        let done = |code| Reply::Status {
            code,
            message: Bytes::from_static(b"\x1b]0;said\x07"),
        };
        let choice = self.byte();
        match request {
            _ if choice > 240 => done(u32::from(choice - 240)),
            Request::Open { .. } | Request::Opendir { .. } => Reply::Handle {
                handle: vec![choice; 1 + usize::from(choice % 4)].into(),
            },
            Request::Read { length, .. } => match choice % 8 {
                0 | 1 => done(status::EOF),
                // More than was asked for.
                2 => Reply::Data {
                    data: vec![choice; length.saturating_add(1).min(100_000) as usize].into(),
                },
                3 => Reply::Data { data: Bytes::new() },
                4 => Reply::Data {
                    data: vec![choice; (*length).min(100_000) as usize].into(),
                },
                _ => Reply::Data {
                    data: vec![choice; usize::from(choice)].into(),
                },
            },
            Request::Readdir { .. } => match choice % 4 {
                0 => done(status::EOF),
                _ => self.names(NAMES, usize::from(choice % 8)),
            },
            Request::Readlink { .. } => self.names(TARGETS, 1),
            Request::Realpath { .. } => self.names(NAMES, 1),
            Request::Stat { .. } | Request::Lstat { .. } | Request::Fstat { .. } => {
                Reply::Attributes {
                    attributes: self.attributes(),
                }
            }
            Request::Extended { .. } if choice.is_multiple_of(2) => Reply::Extended {
                data: self.some(64).into(),
            },
            _ => done(status::OK),
        }
    }

    /// What fits nothing in particular.
    fn strange(&mut self) -> Reply {
        match self.byte() % 5 {
            0 => self.names(NAMES, 40),
            1 => Reply::Attributes {
                attributes: self.attributes(),
            },
            2 => Reply::Data {
                data: vec![b'd'; 200_000].into(),
            },
            3 => Reply::Handle {
                handle: self.some(255).into(),
            },
            _ => Reply::Extended {
                data: self.some(64).into(),
            },
        }
    }

    /// The bytes that are said to a request, more or less as a reply.
    fn reply(&mut self, id: u32, request: &Request, out: &mut BytesMut) {
        match self.byte() {
            0..220 => self.fitting(request).encode(id, out),
            220..240 => self.strange().encode(id, out),
            // An id that nobody asked with, or one that is not due yet.
            240..245 => self.fitting(request).encode(id.wrapping_add(1), out),
            245..250 => {
                self.fitting(request).encode(id, out);
                self.fitting(request).encode(id, out);
            }
            _ => out.extend_from_slice(&self.some(64)),
        }
    }
}

/// Answers one client until the script is over, or the client goes.
pub(super) fn serve(mut stream: UnixStream, script: Script) {
    // It goes when it has seen enough, in the middle of anything.
    let _ = try_serve(&mut stream, script);
}

fn try_serve(stream: &mut UnixStream, script: Script) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n",
    )?;
    stream.set_read_timeout(Some(SILENCE))?;
    answer(stream, script)
}

/// Answers a client from its first frame on.
pub(crate) fn answer(stream: &mut UnixStream, mut script: Script) -> io::Result<()> {
    let which = script.byte();
    let repeats = script.byte() % 2 == 1;
    let mut out = BytesMut::new();
    for number in 0..MAX_REPLIES {
        let (id, request) = read_request(stream)?;
        match request {
            Request::Init { .. } => version(which).encode(id, &mut out),
            request => script.reply(id, &request, &mut out),
        }
        stream.write_all(&out.split())?;
        if script.is_at_end() && number > 0 {
            if !repeats {
                break;
            }
            script.at = 2;
        }
    }
    Ok(())
}

fn version(which: u8) -> Reply {
    let all = [
        (extension::LIMITS, "1"),
        (extension::POSIX_RENAME, "1"),
        (extension::FSYNC, "1"),
        (extension::LSETSTAT, "1"),
        (extension::HASH, "1"),
        (extension::HOLES, "1"),
        (extension::STATVFS, "2"),
        (extension::SESSION, "read-only=true"),
        (extension::STORE, "1"),
        (extension::FETCH, "1"),
        (extension::REPLACE, "1"),
        (extension::COPY_DATA, "1"),
    ];
    // From the ninth on each has the bit of an earlier one once more.
    let chosen = (0..)
        .zip(all)
        .filter(|(bit, _)| which.rotate_right(*bit) & 1 == 1);
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    Reply::Version {
        version: 3,
        extensions: chosen
            .map(|(_, (name, value))| (text(name), text(value)))
            .collect(),
    }
}

pub(crate) fn read_request(stream: &mut UnixStream) -> io::Result<(u32, Request)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame)?;
    Ok(Request::decode(frame.into()).expect("our client says what makes sense"))
}
