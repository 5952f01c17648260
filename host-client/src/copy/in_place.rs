//! Why a file was written in place, and not replaced.

use std::fmt;

use vsock_agent_files as files;

use crate::protocol::sftp::extension::Replaced;

/// Why a file was written in place instead of being replaced by a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InPlace {
    /// No other file can be created in its directory.
    NoPart,
    /// The disk has no space for the old content and the new one at once.
    NoRoom,
    /// Its owner, ACL, extended attributes or security label cannot be given to another file.
    Attributes,
    /// It has other names (hard links), which would keep the old content.
    HardLinks,
    /// Something is mounted there.
    Busy,
    /// A symbolic link leads there, and the name that it leads to is not known.
    Link,
    /// Another reason; the agent does not report which.
    Other,
}

impl InPlace {
    /// From the reply of an agent; `None` if the file was replaced.
    pub(super) const fn from_reply(replaced: Replaced) -> Option<Self> {
        Some(match replaced {
            Replaced::Done => return None,
            Replaced::Attributes => Self::Attributes,
            Replaced::HardLinks => Self::HardLinks,
            Replaced::Busy => Self::Busy,
            _ => Self::Other,
        })
    }
}

impl From<files::InPlace> for InPlace {
    fn from(reason: files::InPlace) -> Self {
        match reason {
            files::InPlace::Attributes => Self::Attributes,
            files::InPlace::HardLinks => Self::HardLinks,
            files::InPlace::Busy => Self::Busy,
            files::InPlace::NotRegular => Self::Other,
        }
    }
}

impl fmt::Display for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPart => "no temporary file can be created beside it",
            Self::NoRoom => "there is no room for a temporary file beside it",
            Self::Attributes => "its owner or attributes cannot be given to a new file",
            Self::HardLinks => "it has other names",
            Self::Busy => "something is mounted there",
            Self::Link => "the name that the link leads to is not known",
            Self::Other => "it cannot be replaced",
        })
    }
}
