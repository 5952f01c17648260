//! A request as what it is made of, before it is bytes for one of the two servers.

use std::fmt::{self, Debug};

use crate::wire::{Writer, kind};

/// One request.
#[derive(Clone)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) damage: Damage,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A type of draft-02.
    Plain(u8),
    /// An extension.
    Extended(&'static str),
}

/// What a request says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    Path(Path),
    Handle(Handle),
    Text(Text),
    Number(u32),
    Long(u64),
    Attributes(Attributes),
}

/// Bytes that a person can read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Text(pub(crate) Vec<u8>);

/// A path in the tree of the sequence, or somewhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Below the tree's root, from `/`.
    Absolute(Text),
    /// Below the tree's root, from where the session starts.
    Relative(Text),
    /// As it is.
    Elsewhere(Text),
}

/// Which handle is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Handle {
    /// What the request with this number got.
    Of(usize),
    /// Nothing that anybody got.
    Nonsense(Text),
}

/// Attributes in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) size: Option<u64>,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mode: Option<u32>,
    pub(crate) times: Option<(u32, u32)>,
    /// Further flags, which say nothing.
    pub(crate) flags: u32,
    pub(crate) extended: Vec<(Text, Text)>,
}

/// What is wrong with the frame itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    None,
    /// So many bytes are missing at the end.
    Cut(usize),
    /// So many bytes follow the end.
    Extra(usize),
}

/// What makes a request of one server different from that of the other.
pub(crate) trait Names {
    /// The root of the tree.
    fn root(&self) -> &[u8];
    /// The handle that the request with this number got.
    fn handle(&self, of: usize) -> &[u8];
}

impl Op {
    /// A request without damage.
    pub(crate) fn new(kind: Kind, arguments: impl Into<Vec<Argument>>) -> Self {
        Self {
            kind,
            arguments: arguments.into(),
            damage: Damage::None,
        }
    }

    /// The frame for one server.
    pub(crate) fn encode(&self, id: u32, names: &impl Names) -> Vec<u8> {
        let mut out = Writer::new(match self.kind {
            Kind::Plain(kind) => kind,
            Kind::Extended(_) => kind::EXTENDED,
        });
        out.number(id);
        if let Kind::Extended(name) = self.kind {
            out.string(name.as_bytes());
        }
        for argument in &self.arguments {
            match argument {
                Argument::Path(path) => out.string(&path.encode(names.root())),
                Argument::Handle(Handle::Of(number)) => out.string(names.handle(*number)),
                Argument::Handle(Handle::Nonsense(text)) | Argument::Text(text) => {
                    out.string(&text.0);
                }
                Argument::Number(number) => out.number(*number),
                Argument::Long(number) => out.long(*number),
                Argument::Attributes(attributes) => attributes.encode(&mut out),
            }
        }
        let mut body = out.0;
        match self.damage {
            Damage::None => {}
            // The type and the id stay: without them nobody could answer.
            Damage::Cut(bytes) => body.truncate(body.len().saturating_sub(bytes).max(5)),
            Damage::Extra(bytes) => body.resize(body.len() + bytes, b'!'),
        }
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.append(&mut body);
        frame
    }

    /// Whether success is a handle.
    pub(crate) fn opens(&self) -> bool {
        matches!(self.kind, Kind::Plain(kind::OPEN | kind::OPENDIR))
    }

    /// The first attributes in it.
    pub(crate) fn attributes(&self) -> Option<&Attributes> {
        self.arguments.iter().find_map(|argument| match argument {
            Argument::Attributes(attributes) => Some(attributes),
            _ => None,
        })
    }

    /// All strings in it that are no handles, without the root of the tree.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.arguments.iter().filter_map(|argument| match argument {
            Argument::Path(Path::Absolute(text) | Path::Relative(text) | Path::Elsewhere(text))
            | Argument::Text(text) => Some(&text.0[..]),
            _ => None,
        })
    }
}

impl Path {
    fn encode(&self, root: &[u8]) -> Vec<u8> {
        match self {
            Self::Absolute(text) => [root, b"/", &text.0].concat(),
            // More steps up than any home is deep; the last stay in `/`.
            Self::Relative(text) => [b"../../../../../..", root, b"/", &text.0].concat(),
            Self::Elsewhere(text) => text.0.clone(),
        }
    }
}

impl Attributes {
    /// Whether they set nothing.
    pub(crate) fn is_empty(&self) -> bool {
        let Self {
            size,
            owner,
            mode,
            times,
            ..
        } = self;
        size.is_none() && owner.is_none() && mode.is_none() && times.is_none()
    }

    fn encode(&self, out: &mut Writer) {
        let mut flags = self.flags;
        for (present, bit) in [
            (self.size.is_some(), 1),
            (self.owner.is_some(), 2),
            (self.mode.is_some(), 4),
            (self.times.is_some(), 8),
            (!self.extended.is_empty(), 0x8000_0000),
        ] {
            flags |= if present { bit } else { 0 };
        }
        out.number(flags);
        if let Some(size) = self.size {
            out.long(size);
        }
        let pair = |out: &mut Writer, pair: Option<(u32, u32)>| {
            if let Some((first, second)) = pair {
                out.number(first);
                out.number(second);
            }
        };
        pair(out, self.owner);
        if let Some(mode) = self.mode {
            out.number(mode);
        }
        pair(out, self.times);
        if !self.extended.is_empty() {
            out.number(u32::try_from(self.extended.len()).unwrap());
            for (name, value) in &self.extended {
                out.string(&name.0);
                out.string(&value.0);
            }
        }
    }
}

impl Kind {
    /// The name in the drafts.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Plain(kind) => kind::name(kind),
            Self::Extended(name) => name.to_owned(),
        }
    }
}

impl Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.name(), self.arguments)?;
        match self.damage {
            Damage::None => Ok(()),
            damage => write!(f, " {damage:?}"),
        }
    }
}

impl Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A longer text is cut: it is one of those that are long on purpose.
        const MAX_SHOWN: usize = 80;
        let shown = self.0.get(..MAX_SHOWN).unwrap_or(&self.0);
        write!(f, "\"{}\"", shown.escape_ascii())?;
        match self.0.len() {
            0..=MAX_SHOWN => Ok(()),
            all => write!(f, "… {all} bytes"),
        }
    }
}
