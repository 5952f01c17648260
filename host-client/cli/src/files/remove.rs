//! `rm`: files and trees of a guest. What a link leads to is never touched: every path is looked at
//! by LSTAT before it is listed, and what is no directory then is removed as what it is.

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use vsock_agent_client::{DirectoryReader, RemotePath, Sftp};

use super::{
    GuestPath,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{args::RmArgs, config::Settings, exit, output::FirstLines};

/// Files removed at once.
const FILES_AT_ONCE: usize = 32;

/// Most entries of a tree that are looked at: a guest could list names for ever.
const MAX_ENTRIES: u64 = 10_000_000;

/// Most memory for the directories that wait, in bytes. With half of it in use, a
/// directory is left until those in it that are known are gone.
const MAX_WAITING_BYTES: usize = 24 * 1024 * 1024;

/// How often a directory is gone through, before it is taken to be one that cannot be emptied.
const MAX_PASSES: u32 = 100;

/// What is removed, and what is a failure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// Directories too, with everything in them.
    pub(super) recursive: bool,
    /// It is no failure if there is nothing.
    pub(super) force: bool,
}

/// `agent-cli rm`.
pub(crate) async fn rm(settings: &Settings, args: RmArgs) -> anyhow::Result<u8> {
    let removal = Removal {
        recursive: args.recursive,
        force: args.force,
    };
    let mut guests = Guests::new(settings, args.session.options());
    operands::each(&args.paths, async |path| {
        let target = GuestPath::parse(path)?;
        let sftp = guests.session(&target.vm).await?;
        removal.remove(&sftp, &target.path).await
    })
    .await
}

impl Removal {
    /// Removes what is at a path.
    pub(super) async fn remove(self, sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
        let what = || format!("cannot remove {}", shown(path));
        let as_directory = path.as_bytes().ends_with(b"/");
        let path = &checked(path).with_context(what)?;
        let attributes = match sftp.lstat(path).await {
            Err(error) if self.force && error.is_not_found() => return Ok(()),
            other => other.with_context(what)?,
        };
        match (is_directory(&attributes), self.recursive) {
            // As rm(1) has it, also of a link to a directory.
            (false, _) if as_directory => bail!("{}: it is not a directory", what()),
            (false, _) => sftp.remove(path).await.with_context(what),
            (true, false) => bail!("{}: it is a directory", what()),
            (true, true) => Tree::new(sftp)
                .remove(path.clone())
                .await
                .with_context(what),
        }
    }
}

/// A path without slashes at its end, with which a link would be followed. The root and what ends
/// in `.` or `..` is refused, as with `rm(1)`.
fn checked(path: &RemotePath) -> anyhow::Result<RemotePath> {
    let mut bytes = path.as_bytes();
    while let Some(rest) = bytes.strip_suffix(b"/") {
        bytes = rest;
    }
    match bytes.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b"." | b"..") => bail!("neither the root nor \".\" or \"..\" is removed"),
        Some(_) => Ok(RemotePath::from(bytes)),
    }
}

/// A tree that is being removed.
#[derive(Debug)]
struct Tree<'a> {
    sftp: &'a Sftp,
    waiting: Vec<Step>,
    /// Bytes of their paths.
    waiting_bytes: usize,
    entries: u64,
    failed: u64,
    failures: FirstLines,
}

/// What is to be done with a directory.
#[derive(Debug)]
struct Step {
    directory: RemotePath,
    /// How often it was gone through.
    passes: u32,
    what: What,
}

/// Bytes of memory that a directory takes while it waits, with what an allocation takes besides.
fn held_bytes(directory: &RemotePath) -> usize {
    size_of::<Step>() + directory.as_bytes().len() + 16
}

#[derive(Debug)]
enum What {
    /// Remove what is in it.
    Empty,
    /// Remove it.
    Finish {
        /// Whether there was something in it.
        had_entries: bool,
        /// What had failed before it was emptied.
        failed_before: u64,
    },
}

impl<'a> Tree<'a> {
    fn new(sftp: &'a Sftp) -> Self {
        Self {
            sftp,
            waiting: Vec::new(),
            waiting_bytes: 0,
            entries: 0,
            failed: 0,
            failures: FirstLines::default(),
        }
    }

    async fn remove(mut self, path: RemotePath) -> anyhow::Result<()> {
        self.wait(path, 0, What::Empty);
        while let Some(step) = self.waiting.pop() {
            self.waiting_bytes -= held_bytes(&step.directory);
            match step.what {
                What::Empty => {
                    let path = shown(&step.directory);
                    let outcome = self.empty(step.directory, step.passes).await;
                    self.tell(outcome.with_context(|| format!("cannot empty {path}")))?;
                }
                What::Finish {
                    had_entries,
                    failed_before,
                } => {
                    let is_told = self.failed > failed_before;
                    let passes = had_entries.then_some(step.passes + 1);
                    self.finish(step.directory, passes, is_told).await?;
                }
            }
            if self.entries > MAX_ENTRIES {
                bail!("more than {MAX_ENTRIES} files in it");
            }
            if self.waiting_bytes > MAX_WAITING_BYTES {
                bail!("too many directories in it");
            }
        }
        match self.failed {
            0 => Ok(()),
            count => bail!("{count} of the files in it could not be removed"),
        }
    }

    fn wait(&mut self, directory: RemotePath, passes: u32, what: What) {
        self.waiting_bytes += held_bytes(&directory);
        self.waiting.push(Step {
            directory,
            passes,
            what,
        });
    }

    /// Removes the files in a directory; the directories in it are next.
    async fn empty(&mut self, directory: RemotePath, passes: u32) -> anyhow::Result<()> {
        // It may have become a link since it was listed.
        if !is_directory(&self.sftp.lstat(&directory).await?) {
            return Ok(self.sftp.remove(&directory).await?);
        }
        let mut reader = self.sftp.read_dir(&directory).await?;
        let finish = self.waiting.len();
        let what = What::Finish {
            had_entries: false,
            failed_before: self.failed,
        };
        self.wait(directory.clone(), passes, what);
        while self.entries <= MAX_ENTRIES {
            let (files, directories) = self.next(&directory, &mut reader).await?;
            if files.is_empty() && directories.is_empty() {
                break;
            }
            if let What::Finish { had_entries, .. } = &mut self.waiting[finish].what {
                *had_entries = true;
            }
            let is_wide = !directories.is_empty();
            for directory in directories {
                self.wait(directory, 0, What::Empty);
            }
            let sftp = self.sftp;
            let mut removing = stream::iter(files)
                .map(|file| async move {
                    let removed = sftp.remove(&file).await;
                    removed.with_context(|| format!("cannot remove {}", shown(&file)))
                })
                .buffer_unordered(FILES_AT_ONCE);
            while let Some(removed) = removing.next().await {
                self.tell(removed)?;
            }
            if is_wide && self.waiting_bytes > MAX_WAITING_BYTES / 2 {
                break;
            }
        }
        Ok(())
    }

    /// Some more entries of a directory: files, and directories.
    async fn next(
        &mut self,
        directory: &RemotePath,
        reader: &mut DirectoryReader,
    ) -> anyhow::Result<(Vec<RemotePath>, Vec<RemotePath>)> {
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        while files.len() + directories.len() < FILES_AT_ONCE {
            let Some(entry) = reader.next().await? else {
                break;
            };
            self.entries += 1;
            let path = directory.join(entry.name().as_encoded_bytes());
            let attributes = match entry.attributes.file_type() {
                Some(_) => entry.attributes,
                None => self.sftp.lstat(&path).await?,
            };
            if is_directory(&attributes) {
                directories.push(path)
            } else {
                files.push(path)
            }
        }
        Ok((files, directories))
    }

    /// Removes a directory; `passes` says how often it was gone through if there was something in
    /// it, and `is_told` whether something stayed there.
    async fn finish(
        &mut self,
        directory: RemotePath,
        passes: Option<u32>,
        is_told: bool,
    ) -> anyhow::Result<()> {
        match (self.sftp.rmdir(&directory).await, passes) {
            (Ok(()), _) => Ok(()),
            (Err(_), _) if is_told => Ok(()),
            // Some file systems leave entries out when others are removed meanwhile.
            (Err(_), Some(passes)) if passes < MAX_PASSES => {
                self.wait(directory, passes, What::Empty);
                Ok(())
            }
            (Err(error), _) => {
                let what = || format!("cannot remove {}", shown(&directory));
                self.tell(Err(error).with_context(what))
            }
        }
    }

    /// Says what failed; the rest goes on unless nothing can.
    fn tell(&mut self, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
        match outcome {
            Err(error) if operands::is_over(&error) => Err(error),
            Err(error) => {
                self.failed += 1;
                self.failures.another(|| {
                    exit::print_error(&error);
                });
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_not_removed_by_any_of_its_names() {
        for path in [
            "/", "//", "/.", "/..", "/a/..", "/a/../", "/etc/./", ".", "..",
        ] {
            checked(&RemotePath::from(path)).unwrap_err();
        }
    }

    #[test]
    fn a_slash_at_the_end_does_not_lead_through_a_link() {
        let path = checked(&RemotePath::from("/a/link//")).unwrap();
        assert_eq!(path.as_bytes(), b"/a/link");
        assert_eq!(
            checked(&RemotePath::from("...")).unwrap().as_bytes(),
            b"..."
        );
    }
}
