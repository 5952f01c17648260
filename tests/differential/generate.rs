//! Random requests: mostly such that make sense, on few names, so that they meet.

use harness::Random;

use crate::{
    op::{Argument, Attributes, Damage, Handle, Kind, Op, Path, Text},
    wire::kind,
};

/// Requests in a sequence at most.
pub(crate) const MAX_OPS: usize = 30;

/// Length of the longest file at the start, in bytes.
pub(crate) const FILE_BYTES: usize = 5_000;

/// A name that is no text.
pub(crate) const NOT_UTF8: &[u8] = b"\xff\xfe n";

/// A file that is only ever read. It alone is copied to its end by COPY-DATA: OpenSSH's server copies a
/// file that is written under another name at the same time for ever, until the disk is full.
pub(crate) const SOURCE: &[u8] = b"source";

/// What is there, what comes to be there, and what never is.
const NAMES: &[&[u8]] = &[
    b"f1",
    b"f2",
    b"h1",
    b"d1",
    b"d1/x",
    b"d1/sub",
    b"d2",
    b"l1",
    b"l2",
    b"dang",
    b"loop",
    b"labs",
    b"n1",
    b"n2",
    b"n3",
    b"d1/n1",
    b"d2/n1",
    b"d1/sub/n2",
    b"l2/x",
    b"l2/n1",
    b"sock",
    NOT_UTF8,
    b"private",
    b"closed",
    b"closed/n1",
];

/// The same and others, spelled as few people do.
const ODD: &[&[u8]] = &[
    b"",
    b".",
    b"./f1",
    b"d1/",
    b"d1/.",
    b"d1/..",
    b"d1//x",
    b"d1/../f1",
    b"d2/",
    b"f1/",
    b"f1/.",
    b"f1/..",
    b"f1/x",
    b"l1/",
    b"l1/x",
    b"l2/",
    b"l2/.",
    b"l2/..",
    b"dang/",
    b"dang/x",
    b"loop/",
    b"loop/x",
    b"n1/",
    b"n1/.",
    b"n1/x",
    b"no/such",
    b"no/../f1",
    b"-dash",
    b"new\nline",
    b"esc\x1b[2J",
    b" space ",
    b"private/",
    b"closed/",
];

/// Paths outside the tree that stay as they are, for requests that change nothing.
const ELSEWHERE: &[&[u8]] = &[
    b"",
    b"/usr",
    b"/usr/",
    b"/usr/./lib/..",
    b"/nonexistent/x",
    b"no-such",
    b"no-such/x",
    b"no-such/",
    b"/~",
    b"no/../..",
];

/// The same for requests that only ask where something is.
const PLACES: &[&[u8]] = &[
    b"",
    b"/",
    b"//",
    b".",
    b"..",
    b"./",
    b"../",
    b"/..",
    b"/usr/../..",
    b"no-such",
    b"no-such/x",
    b"no-such/",
    b"~",
    b"~/",
    b"~/no-such",
    b"~root",
    b"~root/x",
    b"~no-such-user",
    b"~no-such-user/x",
    b"/~",
];

/// Owners that do something else each; the last two change nothing.
const OWNERS: &[u32] = &[0, 1, 1000, 65534, 65534, u32::MAX, u32::MAX];

const MODES: &[u32] = &[
    0,
    0o600,
    0o644,
    0o700,
    0o755,
    0o777,
    0o4755,
    0o2755,
    0o1777,
    0o6640,
    0o7777,
    0o10_0644,
    0o4_0755,
    0o12_0777,
    0o17_7777,
    u32::MAX,
];

const TIMES: &[u32] = &[
    0,
    1,
    86_400,
    1_234_567_890,
    i32::MAX as u32,
    0x8000_0000,
    u32::MAX,
];

const OFFSETS: &[u64] = &[0, 0, 0, 1, 16, 4_999, 5_000, 5_001, 70_000];

/// No file is as long.
const HUGE: &[u64] = &[i64::MAX as u64, 1 << 63, u64::MAX];

/// Types that nobody sends to a server, and such that do not exist.
const STRANGE_KINDS: &[u8] = &[0, 2, 21, 100, 101, 102, 105, 199, 201, 255];

const ACCESS: [u32; 4] = [0, 1, 2, 3];

/// Makes a sequence, with a number for each request.
pub(crate) fn sequence(random: &mut Random) -> Vec<(usize, Op)> {
    let count = 10 + random.below(MAX_OPS - 10);
    let mut maker = Maker {
        random,
        opened: Vec::new(),
        folder: None,
        source: None,
    };
    let mut ops = Vec::new();
    for number in 0..count {
        let op = maker.op();
        if op.opens() {
            maker.opened.push(number);
        }
        if op.texts().any(|text| text == SOURCE) {
            maker.source = Some(number);
        }
        if op.kind == Kind::Plain(kind::OPENDIR) {
            maker.folder = Some(number);
        }
        // OpenSSH's server ends, and what would follow does not happen.
        let last = op.damage != Damage::None && matches!(op.damage, Damage::Cut(_));
        ops.push((number, op));
        if last {
            break;
        }
    }
    ops
}

struct Maker<'a> {
    random: &'a mut Random,
    opened: Vec<usize>,
    /// The last OPENDIR.
    folder: Option<usize>,
    /// The last OPEN of [`SOURCE`].
    source: Option<usize>,
}

impl Maker<'_> {
    fn op(&mut self) -> Op {
        let mut op = match self.random.below(100) {
            0..70 => self.plain(),
            70..98 => self.extension(),
            98 => self.unknown(),
            _ => self.nul(),
        };
        op.damage = match self.random.below(200) {
            0 => Damage::Cut(1 + self.random.below(8)),
            1 => Damage::Extra(1 + self.random.below(8)),
            _ => Damage::None,
        };
        op
    }

    fn plain(&mut self) -> Op {
        let kind = match self.random.below(26) {
            0..4 => return self.open(),
            4 => return self.opendir(),
            5 => kind::CLOSE,
            6..8 => kind::READ,
            8..11 => kind::WRITE,
            11 => kind::FSETSTAT,
            12 => kind::FSTAT,
            13 => kind::READDIR,
            14 => kind::SETSTAT,
            15 => kind::RENAME,
            16 => kind::SYMLINK,
            17 => kind::REMOVE,
            18 => kind::MKDIR,
            19 => kind::RMDIR,
            20 => kind::REALPATH,
            21 => kind::READLINK,
            22 => kind::STAT,
            23 | 24 => kind::READDIR,
            _ => kind::LSTAT,
        };
        let arguments = match kind {
            kind::READDIR => vec![self.folder_handle()],
            kind::CLOSE | kind::FSTAT => vec![self.handle()],
            kind::READ => {
                let length = *self
                    .random
                    .pick(&[0, 1, 17, 4_096, 32_768, 262_144, u32::MAX]);
                vec![self.handle(), self.offset(), Argument::Number(length)]
            }
            kind::WRITE => vec![self.handle(), self.offset(), self.data()],
            kind::FSETSTAT => vec![self.handle(), self.attributes()],
            kind::SETSTAT | kind::MKDIR => vec![self.path(), self.attributes()],
            kind::RENAME => vec![self.path(), self.path()],
            kind::SYMLINK => vec![self.target(), self.path()],
            kind::REMOVE | kind::RMDIR => vec![self.path()],
            kind::REALPATH => vec![self.path_or(PLACES)],
            _ => vec![self.any_path()],
        };
        Op::new(Kind::Plain(kind), arguments)
    }

    fn open(&mut self) -> Op {
        if self.random.percent(12) {
            let path = Argument::Path(Path::Absolute(Text(SOURCE.to_vec())));
            let none = Argument::Attributes(Attributes::default());
            return Op::new(Kind::Plain(kind::OPEN), [path, Argument::Number(1), none]);
        }
        let (path, flags) = match self.random.below(4) {
            // What a client does: most of these work.
            0..3 => {
                let names: [&[u8]; 5] = [b"f1", b"f2", b"n1", b"d1/n1", b"h1"];
                let path = *self.random.pick(&names);
                let flags = *self
                    .random
                    .pick(&[0x1, 0x2, 0x3, 0x6, 0xa, 0xb, 0x1a, 0x2a, 0x1b]);
                (Path::Absolute(Text(path.to_vec())), flags)
            }
            _ => {
                // APPEND, CREAT, TRUNC, EXCL, and two that do not exist.
                let further = u32::try_from(self.random.below(64)).unwrap() << 2;
                let further = if self.random.percent(90) {
                    further & 0x3c
                } else {
                    further
                };
                (self.tree_path(), *self.random.pick(&ACCESS) | further)
            }
        };
        let attributes = if self.random.percent(50) {
            Argument::Attributes(Attributes::default())
        } else {
            self.attributes()
        };
        let arguments = [Argument::Path(path), Argument::Number(flags), attributes];
        Op::new(Kind::Plain(kind::OPEN), arguments)
    }

    fn opendir(&mut self) -> Op {
        let path = if self.random.percent(60) {
            let folders: [&[u8]; 4] = [b"", b"d1", b"l2", b"d2"];
            let folder = self.random.pick(&folders).to_vec();
            Argument::Path(Path::Absolute(Text(folder)))
        } else {
            self.any_path()
        };
        Op::new(Kind::Plain(kind::OPENDIR), [path])
    }

    fn extension(&mut self) -> Op {
        let (name, arguments) = match self.random.below(12) {
            0..2 => ("posix-rename@openssh.com", vec![self.path(), self.path()]),
            2 => ("statvfs@openssh.com", vec![self.path_or(PLACES)]),
            3 => ("fstatvfs@openssh.com", vec![self.handle()]),
            4 => ("hardlink@openssh.com", vec![self.path(), self.path()]),
            5 => ("fsync@openssh.com", vec![self.handle()]),
            6 => ("lsetstat@openssh.com", vec![self.path(), self.attributes()]),
            7 => ("limits@openssh.com", Vec::new()),
            8 => ("expand-path@openssh.com", vec![self.path_or(PLACES)]),
            9 => {
                let (from, to) = (self.handle(), self.handle());
                let (read, write) = (self.offset(), self.offset());
                let (from, length) = match self.source {
                    Some(source) if self.random.percent(50) => {
                        (Argument::Handle(Handle::Of(source)), 0)
                    }
                    _ => (from, *self.random.pick(&[1, 100, 4_000, 100_000])),
                };
                let length = Argument::Long(length);
                ("copy-data", vec![from, read, length, to, write])
            }
            10 => {
                let users: [&[u8]; 4] = [b"", b"root", b"nobody", b"no-such-user"];
                let user = *self.random.pick(&users);
                ("home-directory", vec![Argument::Text(Text(user.to_vec()))])
            }
            _ => (
                "users-groups-by-id@openssh.com",
                vec![self.ids(), self.ids()],
            ),
        };
        Op::new(Kind::Extended(name), arguments)
    }

    fn unknown(&mut self) -> Op {
        let arguments = vec![self.any_path()];
        if self.random.percent(50) {
            Op::new(Kind::Extended("no-such@example.com"), arguments)
        } else {
            Op::new(Kind::Plain(*self.random.pick(STRANGE_KINDS)), arguments)
        }
    }

    /// A request with a NUL in its path, where it has one.
    fn nul(&mut self) -> Op {
        let mut op = if self.random.percent(70) {
            self.plain()
        } else {
            self.extension()
        };
        let at_end = self.random.percent(50);
        for argument in &mut op.arguments {
            if let Argument::Path(Path::Absolute(text)) = argument {
                let at = if at_end { text.0.len() } else { 0 };
                text.0.insert(at, 0);
                break;
            }
        }
        op
    }

    /// A path in the tree, or one outside that nothing is done to.
    fn any_path(&mut self) -> Argument {
        self.path_or(ELSEWHERE)
    }

    fn path_or(&mut self, elsewhere: &[&[u8]]) -> Argument {
        if self.random.percent(15) {
            let text = self.random.pick(elsewhere).to_vec();
            Argument::Path(Path::Elsewhere(Text(text)))
        } else {
            self.path()
        }
    }

    fn path(&mut self) -> Argument {
        Argument::Path(self.tree_path())
    }

    fn tree_path(&mut self) -> Path {
        let name = match self.random.below(100) {
            0..80 => self.random.pick(NAMES).to_vec(),
            80..97 => self.random.pick(ODD).to_vec(),
            97 => vec![b'n'; 255],
            98 => vec![b'n'; 256],
            _ => b"d1/../".repeat(700),
        };
        if self.random.percent(90) {
            Path::Absolute(Text(name))
        } else {
            Path::Relative(Text(name))
        }
    }

    /// What a link says: anything, and seldom something that leads out of the tree.
    fn target(&mut self) -> Argument {
        if self.random.percent(50) {
            self.path()
        } else {
            let names: &[&[u8]] = &[b"f1", b"d1", b"n1", b"x", b"../f1", b"", b"no/such", b"."];
            Argument::Text(Text(self.random.pick(names).to_vec()))
        }
    }

    fn handle(&mut self) -> Argument {
        let text: &[u8] = match self.random.below(100) {
            0..92 if !self.opened.is_empty() => {
                // The last ones are more likely to be open.
                let last = self.opened.len() - 1;
                let back = self.random.below(4).min(last);
                return Argument::Handle(Handle::Of(self.opened[last - back]));
            }
            0..94 => b"\x7f\xff\xff\xf0",
            94 => b"",
            95 => b"\xff\xff\xff\xff",
            96 => b"\x80\0\0\0",
            97 => b"123",
            98 => &[b'h'; 256],
            _ => &[b'h'; 257],
        };
        Argument::Handle(Handle::Nonsense(Text(text.to_vec())))
    }

    /// Mostly the last handle of a folder.
    fn folder_handle(&mut self) -> Argument {
        match self.folder {
            Some(folder) if self.random.percent(80) => Argument::Handle(Handle::Of(folder)),
            _ => self.handle(),
        }
    }

    fn offset(&mut self) -> Argument {
        Argument::Long(if self.random.percent(95) {
            *self.random.pick(OFFSETS)
        } else {
            *self.random.pick(HUGE)
        })
    }

    fn data(&mut self) -> Argument {
        let length = *self.random.pick(&[0, 1, 10, 100, 1_000, 40_000]);
        let first = self.random.byte();
        let data = (0..length).map(|at: usize| first.wrapping_add(at.to_le_bytes()[0]));
        Argument::Text(Text(data.collect()))
    }

    fn attributes(&mut self) -> Argument {
        let random = &mut *self.random;
        let mut attributes = Attributes::default();
        if random.percent(25) {
            let sizes = [0, 1, 100, 4_999, 70_000, 1 << 63, u64::MAX];
            attributes.size = Some(*random.pick(&sizes));
        }
        if random.percent(25) {
            attributes.owner = Some((*random.pick(OWNERS), *random.pick(OWNERS)));
        }
        if random.percent(50) {
            attributes.mode = Some(*random.pick(MODES));
        }
        if random.percent(40) {
            attributes.times = Some((*random.pick(TIMES), *random.pick(TIMES)));
        }
        if random.percent(4) {
            attributes.flags = *random.pick(&[0x10, 0x7fff_fff0]);
        }
        if random.percent(4) {
            let text = |text: &[u8]| Text(text.to_vec());
            attributes.extended = vec![(text(b"a@b"), text(b"c")), (text(b""), text(b"\0"))];
        }
        Argument::Attributes(attributes)
    }

    /// User or group ids, packed as the extension wants them, or not.
    fn ids(&mut self) -> Argument {
        let mut out = Vec::new();
        for _ in 0..self.random.below(4) {
            out.extend_from_slice(
                &self
                    .random
                    .pick(&[0_u32, 1, 65534, 4_242_424])
                    .to_be_bytes(),
            );
        }
        if self.random.percent(2) {
            out.push(0);
        }
        Argument::Text(Text(out))
    }
}
