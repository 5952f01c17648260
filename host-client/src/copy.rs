//! Copying files and trees between host and guest. A file appears under its name when it is complete.
//!
//! ```text
//! push: local directories ──walk──► batches ──► many files at once ──► Sftp
//! pull: remote listings  ──walk──► entries ──► many files at once ──► part ──rename──► target
//! ```
//!
//! A file is written under a temporary name in its directory (its *part*, see [`part_name`]), gets its
//! attributes, and is renamed over the target. An interrupted copy leaves the old file intact. A
//! copy that fails or is dropped removes its part; one that cannot, because the connection or the
//! process ended, leaves it for the next copy to the same target, which removes it or continues with
//! it. Of several copies to one target at the same time the last that ends wins, and none fails: a
//! part that is locked (`flock(2)`) belongs to a copy that still runs.
//!
//! Only a regular file of the same user with one link is ever taken for a part.
//!
//! A new file gets owner, mode, ACL, extended attributes and security label of the regular file that it
//! replaces. A file that must not be replaced is written in place ([`CopyEvent::InPlace`]), and so is
//! every file that is not regular; a copy to a pipe waits for its reader. Links in paths from the caller
//! are followed, and in a push also those in directories of the guest. Names from the guest are never
//! resolved through local links.
//!
//! The guest is not trusted: no reply makes a pull write outside its destination, see
//! [`pull()`].

mod attributes;
mod descriptors;
#[cfg(test)]
mod hostile;
mod in_place;
mod job;
mod local;
mod part;
mod pool;
mod pull;
mod push;
mod resume;
mod run;
mod scan;
mod sparse;
mod within;

use std::io;

pub use self::{
    in_place::InPlace,
    job::{CopyEvents, CopyJob, CopyUpdate},
    part::part_name,
    pull::{pull, pull_stream},
    push::{push, push_stream, push_stream_if},
    within::copy_within,
};
use crate::error::ClientError;

/// Options of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyOptions {
    /// Directories too, with everything in them. Symbolic links are then copied as links, also
    /// those that are named themselves; else what they lead to is.
    pub recursive: bool,
    /// Continue what an earlier copy left unfinished, after comparing it; skip files that are
    /// complete: of the same size, modified in the same second, and with the same content, which is
    /// compared by hash. What is unfinished stays
    /// when this copy fails or is dropped. A push to a server that has neither
    /// `open-part@vsock-agent` nor `copy-data` sends an unfinished file again.
    pub resume: bool,
    /// The only source becomes the destination, also if that is a directory, which then is completed: a
    /// copy that is tried again comes to the same place (`cp -T`).
    pub exact: bool,
    /// Whether each file must be on its disk before it gets its name. `None`: only single files.
    pub fsync: Option<bool>,
    /// Copy owners and groups, as numbers.
    pub owners: bool,
    /// Copy setuid, setgid and sticky bits.
    pub special_bits: bool,
    /// The mode of every file that is written, instead of its source's; directories are not meant.
    pub mode: Option<u32>,
    /// Files get the modes of their sources also where they replace a file, which else keeps its
    /// mode, and whatever the umask of this process.
    pub preserve: bool,
    /// Files are written to, not replaced by new ones that take their names when they are complete.
    /// What breaks off leaves them incomplete. `resume` then has nothing to continue.
    pub in_place: bool,
    /// A symbolic link that has the name of a file is replaced; else what it leads to is.
    pub no_dereference: bool,
    /// Most directories above each other. The default is the most that fit in a path (`PATH_MAX`,
    /// 4096 bytes, `linux/limits.h`).
    pub max_depth: usize,
    /// Most files, directories and links in all.
    pub max_entries: u64,
    /// Most bytes of files in all. A copy that would need more ends before the file that would
    /// exceed it; a file of unknown length is read until the limit.
    pub max_bytes: Option<u64>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            recursive: false,
            resume: false,
            exact: false,
            fsync: None,
            owners: false,
            special_bits: false,
            mode: None,
            preserve: false,
            in_place: false,
            no_dereference: false,
            max_depth: 2048,
            max_entries: 10_000_000,
            max_bytes: None,
        }
    }
}

/// What happens during a copy. A `path` is that of the source, as bytes; one of a guest may hold
/// terminal control sequences.
#[derive(Debug)]
#[non_exhaustive]
pub enum CopyEvent<'a> {
    /// The walk found more. Trees are walked while they are copied, so these are no totals yet.
    Found {
        /// Bytes of files that were found since the last such event.
        bytes: u64,
        /// Files, directories and links that were found since then.
        entries: u64,
    },
    /// A file is being copied.
    Started {
        /// Path of the source.
        path: &'a [u8],
        /// Its size, as far as known. That of a guest's file may be a lie.
        size: Option<u64>,
        /// Bytes that were there from an earlier copy.
        resumed_at: u64,
    },
    /// Bytes of some file were copied.
    Moved {
        /// How many since the last such event.
        bytes: u64,
    },
    /// A file, directory or link is complete under its name.
    Finished {
        /// Path of the source.
        path: &'a [u8],
        /// Its bytes; 0 for what is no file.
        bytes: u64,
    },
    /// A source grew or changed while it was copied: what was copied are as many bytes as it had at
    /// the start.
    Changed {
        /// Path of the source.
        path: &'a [u8],
    },
    /// Something was not copied, and that is no failure.
    Skipped {
        /// Path of the source.
        path: &'a [u8],
        /// Reason.
        reason: SkipReason,
    },
    /// A file is written to instead of being replaced, although that was not asked for: what breaks
    /// off now leaves it incomplete.
    InPlace {
        /// Path of the source.
        path: &'a [u8],
        /// Reason.
        reason: InPlace,
    },
    /// What an earlier copy left beside a file could not be removed. The file is complete.
    LeftBehind {
        /// Path of the source.
        path: &'a [u8],
        /// Error of the file.
        error: &'a CopyError,
    },
    /// Something could not be copied. The rest goes on.
    Failed {
        /// Path of the source.
        path: &'a [u8],
        /// Error of the file.
        error: &'a CopyError,
    },
}

/// Why something was not copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// A pipe, a socket or a device: those are not read.
    Special,
    /// It is there already; only with [`CopyOptions::resume`].
    Complete,
}

/// Gets the events of a copy. Called by the task that copies, so it must not block.
pub trait CopyObserver: Send + Sync {
    /// Called for each event.
    fn observe(&self, event: CopyEvent<'_>);
}

/// Ignores all events.
impl CopyObserver for () {
    fn observe(&self, _: CopyEvent<'_>) {}
}

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopySummary {
    /// Files copied.
    pub files: u64,
    /// Directories made or completed.
    pub directories: u64,
    /// Symbolic links made.
    pub links: u64,
    /// Bytes of the files copied.
    pub bytes: u64,
    /// What was skipped.
    pub skipped: u64,
    /// What failed.
    pub failed: u64,
}

impl std::ops::AddAssign for CopySummary {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.directories += other.directories;
        self.links += other.links;
        self.bytes += other.bytes;
        self.skipped += other.skipped;
        self.failed += other.failed;
    }
}

/// Why a copy, or one file of it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// An error of the agent or the connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A local error.
    #[error("cannot {action}")]
    Local {
        /// The operation.
        action: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// Several sources, or a destination that ends in a slash, need a directory to go to.
    #[error("the destination is not a directory")]
    NotADirectory,
    /// A directory, and the copy is not recursive.
    #[error("it is a directory")]
    IsADirectory,
    /// A file where a directory was to be made, or the other way round.
    #[error("something of another kind is in its place")]
    InTheWay,
    /// Two sources of one copy have the same name. The first is copied; two directories become one, as
    /// far as what is in them has different names.
    #[error("it would replace what was just copied from another source")]
    JustCopied,
    /// A pipe, a socket or a device.
    #[error("it is not a regular file")]
    Special,
    /// A source without a last component, to go into a directory.
    #[error("it has no name of its own")]
    NoName,
    /// The source became shorter, or something else, while it was copied.
    #[error("it became shorter or was replaced while it was copied")]
    Changed,
    /// The target is a socket, which cannot be written to like a file.
    #[error("the target is a socket")]
    Socket,
    /// The target is a symbolic link to nothing.
    #[error("the target is a symbolic link that leads nowhere")]
    DanglingLink,
    /// In a directory that is copied, a device or a pipe has the name of a file. Only what the
    /// caller names is written to.
    #[error("the target is a device or a pipe")]
    SpecialTarget,
    /// The target is not as it was when it was looked at.
    #[error("it was changed by another process meanwhile: nothing was written")]
    TargetChanged,
    /// The target must not be replaced by a new file, and this server cannot do more, or the disk has
    /// no space for the complete file and the target at once. Nothing was written to the target.
    #[error("it can only be written in place: {0}")]
    OnlyInPlace(InPlace),
    /// The part or its directory was removed or renamed.
    #[error("the unfinished file or its directory was removed or renamed meanwhile")]
    PartGone,
    /// A directory that was left for one below it was moved, or the one below was.
    #[error("a directory was moved while it was copied")]
    DirectoryMoved,
    /// What arrived is not what was sent.
    #[error("the copy differs from its source")]
    Differs,
    /// A limit of [`CopyOptions`] was reached.
    #[error("{what} is over the limit of {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl CopyError {
    fn local(action: &'static str, source: io::Error) -> Self {
        Self::Local { action, source }
    }
}
