//! `rm`: files and trees of a guest. What a link leads to is never touched: every path is looked at
//! by LSTAT before it is listed, and what is no directory then is removed as what it is.

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use vsock_agent_client::{DirectoryReader, RemotePath, Sftp};

use super::{
    Place,
    attributes::is_directory,
    listing::MAX_ENTRIES,
    operands::{self, Guests},
    shown,
};
use crate::{args::RmArgs, config::Settings, exit};

/// Files removed at once.
const FILES_AT_ONCE: usize = 32;

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
        let place = Place::parse(path)?;
        let sftp = guests.session(&place.vm).await?;
        removal.remove(&sftp, &place.path).await
    })
    .await
}

impl Removal {
    /// Removes what is at a path.
    pub(super) async fn remove(self, sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
        let what = || format!("cannot remove {}", shown(path));
        let path = &checked(path).with_context(what)?;
        let attributes = match sftp.lstat(path).await {
            Err(error) if self.force && error.is_not_found() => return Ok(()),
            other => other.with_context(what)?,
        };
        match (is_directory(&attributes), self.recursive) {
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
/// in `.` or `..` is refused: nobody wants to lose that.
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
    failed: u64,
}

#[derive(Debug)]
enum Step {
    /// A directory to be emptied.
    Empty(RemotePath),
    /// One that was emptied; whether there was something in it.
    Finish(RemotePath, bool),
}

impl<'a> Tree<'a> {
    const fn new(sftp: &'a Sftp) -> Self {
        Self {
            sftp,
            waiting: Vec::new(),
            failed: 0,
        }
    }

    async fn remove(mut self, path: RemotePath) -> anyhow::Result<()> {
        self.waiting.push(Step::Empty(path));
        while let Some(step) = self.waiting.pop() {
            match step {
                Step::Empty(directory) => {
                    let outcome = self.empty(&directory).await;
                    self.tell(
                        outcome.with_context(|| format!("cannot empty {}", shown(&directory))),
                    )?;
                }
                Step::Finish(directory, had_entries) => self.finish(directory, had_entries).await?,
            }
        }
        match self.failed {
            0 => Ok(()),
            count => bail!("{count} of the files in it could not be removed"),
        }
    }

    /// Removes the files in a directory; the directories in it are next.
    async fn empty(&mut self, directory: &RemotePath) -> anyhow::Result<()> {
        // It may have become a link since it was listed.
        if !is_directory(&self.sftp.lstat(directory).await?) {
            return Ok(self.sftp.remove(directory).await?);
        }
        let mut reader = self.sftp.read_dir(directory).await?;
        let finish = self.waiting.len();
        self.waiting.push(Step::Finish(directory.clone(), false));
        loop {
            let (files, directories) = self.next(directory, &mut reader).await?;
            if files.is_empty() && directories.is_empty() {
                return Ok(());
            }
            self.waiting[finish] = Step::Finish(directory.clone(), true);
            self.waiting
                .extend(directories.into_iter().map(Step::Empty));
            if self.waiting.len() > MAX_ENTRIES {
                bail!("more than {MAX_ENTRIES} directories");
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
        }
    }

    /// Some more entries of a directory: files, and directories.
    async fn next(
        &self,
        directory: &RemotePath,
        reader: &mut DirectoryReader,
    ) -> anyhow::Result<(Vec<RemotePath>, Vec<RemotePath>)> {
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        while files.len() + directories.len() < FILES_AT_ONCE {
            let Some(entry) = reader.next().await? else {
                break;
            };
            let path = directory.join(entry.name().as_encoded_bytes());
            let attributes = match entry.attributes.file_type() {
                Some(_) => entry.attributes,
                None => self.sftp.lstat(&path).await?,
            };
            match is_directory(&attributes) {
                true => directories.push(path),
                false => files.push(path),
            }
        }
        Ok((files, directories))
    }

    async fn finish(&mut self, directory: RemotePath, had_entries: bool) -> anyhow::Result<()> {
        match self.sftp.rmdir(&directory).await {
            Ok(()) => Ok(()),
            // Not empty, which was told.
            Err(_) if self.failed > 0 => Ok(()),
            // Some file systems leave entries out when others are removed meanwhile.
            Err(_) if had_entries => {
                self.waiting.push(Step::Empty(directory));
                Ok(())
            }
            Err(error) => {
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
                exit::tell(&error);
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
