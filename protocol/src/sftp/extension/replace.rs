//! Messages of our own extension [`REPLACE`](super::REPLACE): a complete file gets the name and the
//! attributes of another one.

use bytes::Bytes;

use super::{Field, MalformedExtension, Reader, Short, field};

/// Request of [`REPLACE`](super::REPLACE). If the answer is not [`Replaced::Done`], `to` is
/// unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplaceFile {
    /// The path of the new file: regular, complete, closed.
    pub from: Bytes,
    /// Its new path, which need not exist.
    pub to: Bytes,
    /// What the new file keeps.
    pub replacement: Replacement,
}

/// How a file is replaced. By default the new one gets the old one's owner and
/// mode, and links are replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replacement {
    /// The new file keeps the mode that it has.
    pub sets_mode: bool,
    /// The new file keeps the owner and the group that it has.
    pub sets_owner: bool,
    /// A symbolic link is not replaced, but [`Replaced::NotRegular`].
    pub leaves_links: bool,
    /// The directory must be on its disk before the answer, so that the name is that of the new file
    /// also after a crash. One that cannot be opened for reading is not.
    pub syncs_directory: bool,
}

/// Answer to [`REPLACE`](super::REPLACE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replaced {
    /// The file was replaced.
    Done,
    /// The owner, the ACL or something like them cannot be given to another file.
    Attributes,
    /// The target has other hard links, which would keep the old content.
    HardLinks,
    /// Something is mounted there.
    Busy,
    /// The target is no regular file.
    NotRegular,
    /// Another reason to write to the target instead.
    Other,
}

impl Replacement {
    const FLAGS: [u32; 4] = [1, 2, 4, 8];

    /// As a number.
    pub(super) fn bits(self) -> u32 {
        let set = [
            self.sets_mode,
            self.sets_owner,
            self.leaves_links,
            self.syncs_directory,
        ];
        let bits = Self::FLAGS.iter().zip(set);
        bits.map(|(flag, set)| if set { *flag } else { 0 }).sum()
    }

    /// From a number; unknown bits are ignored.
    pub(super) fn from_bits(bits: u32) -> Self {
        let [sets_mode, sets_owner, leaves_links, syncs_directory] =
            Self::FLAGS.map(|flag| bits & flag != 0);
        Self {
            sets_mode,
            sets_owner,
            leaves_links,
            syncs_directory,
        }
    }
}

in_order!(ReplaceFile: from, to, replacement);

impl Replaced {
    const CODES: [Self; 5] = [
        Self::Done,
        Self::Attributes,
        Self::HardLinks,
        Self::Busy,
        Self::NotRegular,
    ];

    /// The data of the reply.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let code = (0..).zip(Self::CODES).find(|(_, known)| *known == self);
        let code: u32 = code.map_or(u32::MAX, |(code, _)| code);
        Bytes::copy_from_slice(&code.to_be_bytes())
    }

    /// Reads the data of a reply.
    ///
    /// # Errors
    ///
    /// [`MalformedExtension`].
    pub fn decode(data: Bytes) -> Result<Self, MalformedExtension> {
        let code = usize::try_from(Reader(data).u32()?).unwrap_or(usize::MAX);
        Ok(Self::CODES.get(code).copied().unwrap_or(Self::Other))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{bytes, survives},
        *,
    };

    #[test]
    fn requests_and_replies_are_read_as_written_and_refused_when_cut() {
        for bits in 0..16 {
            let request = ReplaceFile {
                from: bytes("/a.part"),
                to: bytes("/a"),
                replacement: Replacement::from_bits(bits),
            };
            assert_eq!(request.replacement.bits(), bits);
            survives(request.clone(), request.encode(), ReplaceFile::decode);
        }
        for replaced in Replaced::CODES.into_iter().chain([Replaced::Other]) {
            survives(replaced, replaced.encode(), Replaced::decode);
        }
    }
}
