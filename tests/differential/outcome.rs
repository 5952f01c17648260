//! What a server answered, without what may differ from run to run or with the name of the tree.

use std::time::SystemTime;

use crate::{
    op::{Kind, Text},
    wire::{Reader, kind},
};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status(u32),
    Handle,
    Data(Text),
    /// In the order of the names: that of a listing is not promised.
    Names(Vec<Name>),
    Attributes(Attributes),
    Extended(Text),
    /// VERSION and its extensions.
    Version(u32, Vec<(Text, Text)>),
    /// Nothing, and the session goes on.
    Silence,
    /// The end of the session.
    End,
    /// Nothing for so long that nothing will come.
    Hang,
}

/// One of some names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) name: Text,
    pub(crate) attributes: Attributes,
    /// What is before the name in the line for people, in words, and how the name is written there.
    pub(crate) long: (Vec<String>, Text),
}

/// Attributes in an answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attributes {
    flags: u32,
    size: Option<u64>,
    pub(crate) owner: Option<(u32, u32)>,
    mode: Option<u32>,
    times: Option<(Time, Time)>,
}

/// A time that somebody set, or that something happened at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Time {
    /// During the test.
    Now,
    /// Any other, in seconds since 1970.
    At(i64),
}

impl Time {
    pub(crate) fn of(seconds: i64) -> Self {
        /// More than a test takes.
        const TEST_SECONDS: i64 = 3600;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let now = i64::try_from(now).unwrap();
        if (now - TEST_SECONDS..=now + 1).contains(&seconds) {
            Self::Now
        } else {
            Self::At(seconds)
        }
    }
}

/// Words before the name in a line of `ls -l`.
const LONG_WORDS: usize = 8;

/// The first of them that tell the time.
const DATE_WORDS: usize = 5;

impl Outcome {
    /// Reads a frame without its length, and gives the id that it has. What follows its end is a
    /// mistake of the server.
    pub(crate) fn decode(frame: &[u8], op: Kind, root: &[u8]) -> (u32, Self) {
        let mut reader = Reader(frame);
        let kind = reader.byte();
        let id = reader.number();
        let outcome = match kind {
            kind::VERSION => {
                let mut extensions = Vec::new();
                while !reader.0.is_empty() {
                    let name = Text(reader.string().to_vec());
                    extensions.push((name, Text(reader.string().to_vec())));
                }
                extensions.sort();
                Self::Version(id, extensions)
            }
            kind::STATUS => {
                let code = reader.number();
                let (message, _language) = (reader.string(), reader.string());
                assert!(!message.is_empty(), "status {code} without a text");
                Self::Status(code)
            }
            kind::HANDLE => {
                assert!((1..=256).contains(&reader.string().len()));
                Self::Handle
            }
            kind::DATA => Self::Data(Text(reader.string().to_vec())),
            kind::NAME => {
                let count = reader.number();
                let mut names: Vec<_> = (0..count).map(|_| name(&mut reader, root)).collect();
                names.sort();
                Self::Names(names)
            }
            kind::ATTRS => Self::Attributes(attributes(&mut reader)),
            kind::EXTENDED_REPLY => {
                let data = std::mem::take(&mut reader.0);
                Self::Extended(Text(still(op, data)))
            }
            other => panic!("a reply of type {other}"),
        };
        assert!(reader.0.is_empty(), "more after {outcome:?}");
        (id, outcome)
    }

    /// Without what the answer says, for telling differences apart.
    pub(crate) fn class(&self) -> String {
        match self {
            Self::Status(code) => format!("status {code}"),
            Self::Handle => "a handle".into(),
            Self::Data(_) => "data".into(),
            Self::Names(_) => "names".into(),
            Self::Attributes(_) => "attributes".into(),
            Self::Extended(_) => "an extended reply".into(),
            Self::Version(..) => "VERSION".into(),
            Self::Silence => "no reply".into(),
            Self::End => "the end of the session".into(),
            Self::Hang => "a hang".into(),
        }
    }
}

fn name(reader: &mut Reader<'_>, root: &[u8]) -> Name {
    let name = without_root(reader.string(), root);
    let long = without_root(reader.string(), root);
    let attributes = attributes(reader);
    let long = long_parts(&long, &attributes);
    Name {
        name: Text(name),
        attributes,
        long,
    }
}

/// The words of a line of `ls -l`, and the name. Names of REALPATH and READLINK come without words.
fn long_parts(line: &[u8], attributes: &Attributes) -> (Vec<String>, Text) {
    if attributes.flags == 0 {
        return (Vec::new(), Text(line.to_vec()));
    }
    let mut rest = line;
    let mut words = Vec::new();
    while words.len() < LONG_WORDS {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ');
        let end = end.unwrap_or(rest.len());
        words.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        rest = &rest[end..];
    }
    // The minute may pass between the two.
    if attributes.times.is_some_and(|(_, time)| time == Time::Now) {
        words.truncate(DATE_WORDS);
    }
    (words, Text(rest.get(1..).unwrap_or_default().to_vec()))
}

fn attributes(reader: &mut Reader<'_>) -> Attributes {
    let flags = reader.number();
    let has = |bit| flags & bit != 0;
    assert_eq!(flags & !0xf, 0, "attributes that nobody knows");
    let size = has(1).then(|| reader.long());
    let owner = has(2).then(|| (reader.number(), reader.number()));
    let mode = has(4).then(|| reader.number());
    let times = has(8).then(|| {
        let mut time = || Time::of(reader.number().into());
        (time(), time())
    });
    Attributes {
        flags,
        size,
        owner,
        mode,
        times,
    }
}

/// The bytes with `@` where the root of the tree is.
pub(crate) fn without_root(bytes: &[u8], root: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first() {
        match rest.strip_prefix(root) {
            Some(after) => {
                out.push(b'@');
                rest = after;
            }
            None => {
                out.push(*first);
                rest = others;
            }
        }
    }
    out
}

/// The data of an extended reply without what changes by itself: the free room of a file system
/// (fields 3, 4, 6 and 7 of statvfs), and how many handles a server has.
fn still(op: Kind, data: &[u8]) -> Vec<u8> {
    let fields: &[usize] = match op {
        Kind::Extended("statvfs@openssh.com" | "fstatvfs@openssh.com") => &[3, 4, 6, 7],
        _ => &[],
    };
    let mut data = data.to_vec();
    for field in fields {
        if let Some(number) = data.get_mut(field * 8..field * 8 + 8) {
            number.fill(0);
        }
    }
    data
}
