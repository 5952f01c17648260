//! `rm`: removes files and trees of a guest. Symbolic links are not followed: a directory is checked
//! with LSTAT before it is listed, and anything else is removed itself.

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use vsock_agent_client::{DirectoryReader, RemotePath, Sftp};

use super::{
    GuestPath,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{args::RmArgs, config::Settings, exit, output::LineLimit};

/// Files removed concurrently.
const FILES_AT_ONCE: usize = 32;

/// Most entries of a tree. A guest could list names for ever.
const MAX_ENTRIES: u64 = 10_000_000;

/// Most memory for pending directories, in bytes. When half of it is in use, the subdirectories found
/// so far are removed before the rest of their parent is listed.
const MAX_PENDING_BYTES: usize = 24 * 1024 * 1024;

/// How often a directory is listed before its removal fails.
const MAX_PASSES: u32 = 100;

/// The options of `rm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removal {
    /// Removes directories with their content.
    pub(super) recursive: bool,
    /// Ignores a path that does not exist.
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
    /// Removes a file or a tree.
    pub(super) async fn remove(self, sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
        let what = || format!("cannot remove {}", shown(path));
        let as_directory = path.as_bytes().ends_with(b"/");
        let path = &checked(path).with_context(what)?;
        let attributes = match sftp.lstat(path).await {
            Err(error) if self.force && error.is_not_found() => return Ok(()),
            other => other.with_context(what)?,
        };
        match (is_directory(&attributes), self.recursive) {
            // As with rm(1), also for a link to a directory.
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

/// Strips trailing slashes, which would follow a link. Refuses the root and paths that end in `.` or
/// `..`, as `rm(1)` does.
fn checked(path: &RemotePath) -> anyhow::Result<RemotePath> {
    let mut bytes = path.as_bytes();
    while let Some(rest) = bytes.strip_suffix(b"/") {
        bytes = rest;
    }
    match bytes.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b"." | b"..") => bail!("the root, \".\" and \"..\" cannot be removed"),
        Some(_) => Ok(RemotePath::from(bytes)),
    }
}

/// A tree that is being removed, depth first.
#[derive(Debug)]
struct Tree<'a> {
    sftp: &'a Sftp,
    /// The last step is next.
    pending: Vec<Step>,
    /// Memory of `pending`.
    pending_bytes: usize,
    entries: u64,
    failed: u64,
    failures: LineLimit,
}

/// A step of the removal.
#[derive(Debug)]
struct Step {
    directory: RemotePath,
    /// How often the directory was listed before.
    passes: u32,
    action: Action,
}

#[derive(Debug)]
enum Action {
    /// Remove the entries of the directory.
    Empty,
    /// Remove the directory.
    Finish {
        had_entries: bool,
        /// The failures before its entries were removed.
        failed_before: u64,
    },
}

/// Memory of a pending step in bytes, with the overhead of its allocation.
fn held_bytes(directory: &RemotePath) -> usize {
    size_of::<Step>() + directory.as_bytes().len() + 16
}

impl<'a> Tree<'a> {
    fn new(sftp: &'a Sftp) -> Self {
        Self {
            sftp,
            pending: Vec::new(),
            pending_bytes: 0,
            entries: 0,
            failed: 0,
            failures: LineLimit::default(),
        }
    }

    async fn remove(mut self, path: RemotePath) -> anyhow::Result<()> {
        self.push(path, 0, Action::Empty);
        while let Some(step) = self.pending.pop() {
            self.pending_bytes -= held_bytes(&step.directory);
            match step.action {
                Action::Empty => {
                    let path = shown(&step.directory);
                    let emptied = self.empty(step.directory, step.passes).await;
                    self.report(emptied.with_context(|| format!("cannot empty {path}")))?;
                }
                Action::Finish {
                    had_entries,
                    failed_before,
                } => {
                    let passes = had_entries.then_some(step.passes + 1);
                    self.finish(step.directory, passes, failed_before).await?;
                }
            }
            if self.entries > MAX_ENTRIES {
                bail!("it contains more than {MAX_ENTRIES} files");
            }
            if self.pending_bytes > MAX_PENDING_BYTES {
                bail!("it contains too many directories");
            }
        }
        match self.failed {
            0 => Ok(()),
            count => bail!("{count} of its files could not be removed"),
        }
    }

    fn push(&mut self, directory: RemotePath, passes: u32, action: Action) {
        self.pending_bytes += held_bytes(&directory);
        self.pending.push(Step {
            directory,
            passes,
            action,
        });
    }

    /// Removes the files in a directory, and pushes its subdirectories.
    async fn empty(&mut self, directory: RemotePath, passes: u32) -> anyhow::Result<()> {
        // It may have become a link since it was listed.
        if !is_directory(&self.sftp.lstat(&directory).await?) {
            return Ok(self.sftp.remove(&directory).await?);
        }
        let mut reader = self.sftp.read_dir(&directory).await?;
        let finish = self.pending.len();
        let action = Action::Finish {
            had_entries: false,
            failed_before: self.failed,
        };
        self.push(directory.clone(), passes, action);
        while self.entries <= MAX_ENTRIES {
            let (files, directories) = self.next(&directory, &mut reader).await?;
            if files.is_empty() && directories.is_empty() {
                break;
            }
            if let Action::Finish { had_entries, .. } = &mut self.pending[finish].action {
                *had_entries = true;
            }
            let has_directories = !directories.is_empty();
            for directory in directories {
                self.push(directory, 0, Action::Empty);
            }
            let sftp = self.sftp;
            let mut removing = stream::iter(files)
                .map(|file| async move {
                    let removed = sftp.remove(&file).await;
                    removed.with_context(|| format!("cannot remove {}", shown(&file)))
                })
                .buffer_unordered(FILES_AT_ONCE);
            while let Some(removed) = removing.next().await {
                self.report(removed)?;
            }
            if has_directories && self.pending_bytes > MAX_PENDING_BYTES / 2 {
                break;
            }
        }
        Ok(())
    }

    /// Reads up to [`FILES_AT_ONCE`] entries of a directory. Returns the files and the directories.
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

    /// Removes an emptied directory. If that fails without a reported failure below it, lists it again
    /// as long as `passes`, the passes that found entries, allows: some file systems omit entries while
    /// others are removed.
    async fn finish(
        &mut self,
        directory: RemotePath,
        passes: Option<u32>,
        failed_before: u64,
    ) -> anyhow::Result<()> {
        let Err(error) = self.sftp.rmdir(&directory).await else {
            return Ok(());
        };
        match passes {
            _ if self.failed > failed_before => Ok(()),
            Some(passes) if passes < MAX_PASSES => {
                self.push(directory, passes, Action::Empty);
                Ok(())
            }
            _ => {
                let what = || format!("cannot remove {}", shown(&directory));
                self.report(Err(error).with_context(what))
            }
        }
    }

    /// Prints and counts a failure. Returns it if no further request can succeed.
    fn report(&mut self, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
        match outcome {
            Err(error) if operands::is_over(&error) => Err(error),
            Err(error) => {
                self.failed += 1;
                self.failures.print(|| {
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
    fn rm_refuses_every_name_of_the_root() {
        for path in [
            "/", "//", "/.", "/..", "/a/..", "/a/../", "/etc/./", ".", "..",
        ] {
            checked(&RemotePath::from(path)).unwrap_err();
        }
    }

    #[test]
    fn rm_strips_trailing_slashes_of_a_link() {
        let path = checked(&RemotePath::from("/a/link//")).unwrap();
        assert_eq!(path.as_bytes(), b"/a/link");
        assert_eq!(
            checked(&RemotePath::from("...")).unwrap().as_bytes(),
            b"..."
        );
    }
}
