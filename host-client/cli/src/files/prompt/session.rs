//! Runs the commands of the prompt.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use anyhow::{Context, bail};
use vsock_agent_client::{
    RemotePath, Sftp,
    copy::{self, CopyOptions},
    protocol::sftp::{Attributes, Owner, extension},
};

use super::{
    command::{Attribute, Command},
    expand::{self, Guest, Host, below, expand},
    line::Word,
    shell, table,
};
use crate::{
    files::{
        attributes::is_directory,
        copy::report::Report,
        listing::{self, Content, Listed, Listing, View},
        mkdir, shown, stat,
    },
    output, terminal,
};

/// What the prompt does after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    Quit,
}

/// The state of the prompt.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) sftp: Sftp,
    /// The current directory in the guest.
    pub(super) directory: RemotePath,
    /// The first directory in the guest.
    home: RemotePath,
    /// Whether copies have a progress bar.
    pub(super) shows_progress: bool,
    is_interactive: bool,
}

impl Session {
    pub(super) async fn start(sftp: Sftp, is_interactive: bool) -> anyhow::Result<Self> {
        let home = sftp.realpath(".").await;
        let home = home.context("cannot find the initial directory")?;
        Ok(Self {
            sftp,
            directory: home.clone(),
            home,
            shows_progress: is_interactive,
            is_interactive,
        })
    }

    pub(super) async fn run(&mut self, command: Command) -> anyhow::Result<Next> {
        match command {
            Command::Bye => return Ok(Next::Quit),
            Command::Help => output::lines(table::help())?,
            Command::Version => output::line("SFTP protocol version 3")?,
            Command::Progress => {
                self.shows_progress = !self.shows_progress;
                let word = if self.shows_progress {
                    "enabled"
                } else {
                    "disabled"
                };
                output::line(&format!("Progress meter {word}"))?;
            }
            Command::Pwd => {
                let directory = shown(&self.directory);
                output::line(&format!("Remote working directory: {directory}"))?;
            }
            Command::Cd(path) => self.change_directory(path.as_ref()).await?,
            Command::Ls(view, paths) => self.list(view, &paths).await?,
            Command::Transfer(transfer) => self.transfer(&transfer).await?,
            Command::Rm(removal, paths) => {
                for path in self.paths(&paths).await? {
                    removal.remove(&self.sftp, &path).await?;
                }
            }
            Command::Mkdir(path) => mkdir::create(&self.sftp, &self.path(&path).await?).await?,
            Command::Rmdir(path) => {
                let path = self.path(&path).await?;
                let removed = self.sftp.rmdir(&path).await;
                removed.with_context(|| format!("cannot remove {}", shown(&path)))?;
            }
            Command::Rename(old, new) => self.rename(&old, &new).await?,
            Command::Copy(old, new) => self.copy(&old, &new).await?,
            Command::Hardlink(old, new) => {
                let (old, new) = (self.path(&old).await?, self.path(&new).await?);
                let linked = self.sftp.hardlink(&old, &new).await;
                linked
                    .with_context(|| format!("cannot link {} to {}", shown(&old), shown(&new)))?;
            }
            Command::Symlink(target, new) => {
                let new = self.path(&new).await?;
                let linked = self.sftp.symlink(target.bytes(), &new).await;
                linked.with_context(|| format!("cannot link {target} to {}", shown(&new)))?;
            }
            Command::SetAttribute {
                attribute,
                of_link,
                paths,
            } => {
                for path in self.paths(&paths).await? {
                    let changed = self.set_attribute(attribute, of_link, &path).await;
                    changed.with_context(|| format!("cannot change {}", shown(&path)))?;
                }
            }
            Command::Df {
                inodes,
                human,
                path,
            } => {
                let path = match path {
                    Some(path) => self.path(&path).await?,
                    None => self.directory.clone(),
                };
                let system = stat::file_system(&self.sftp, &path).await?;
                output::lines(stat::df_lines(&system, inodes, human))?;
            }
            Command::Stat(paths) => {
                for path in self.paths(&paths).await? {
                    let status = stat::FileStatus::read(&self.sftp, &path, false).await?;
                    output::lines(status.lines())?;
                }
            }
            Command::Lcd(path) => shell::change_directory(path.as_ref().map(expand::local))?,
            Command::Lpwd => {
                output::line(&format!("Local working directory: {}", shell::directory()?))?
            }
            Command::Lmkdir(path) => shell::make_directory(&expand::local(&path))?,
            Command::Lumask(mask) => {
                output::line(&format!("Local umask: {:03o}", shell::umask(mask)?))?
            }
            Command::Shell(line) => shell::run(&line).await?,
        }
        Ok(Next::Continue)
    }

    /// Resolves a word to a path in the guest. A leading `~` is expanded if the agent supports it.
    pub(super) async fn path(&self, word: &Word) -> anyhow::Result<RemotePath> {
        let bytes = word.bytes();
        if word.is_home() && self.sftp.has_extension(extension::EXPAND_PATH) {
            let expanded = self.sftp.expand_path(&bytes[..]).await;
            return expanded.with_context(|| format!("cannot expand {word}"));
        }
        Ok(below(&self.directory, &bytes))
    }

    /// Expands words to paths in the guest, each with its name as typed or matched.
    async fn named_paths(&self, words: &[Word]) -> anyhow::Result<Vec<(Vec<u8>, RemotePath)>> {
        let guest = Guest {
            sftp: &self.sftp,
            directory: &self.directory,
        };
        let mut paths = Vec::new();
        for word in words {
            let found = expand(&guest, word).await?;
            match &found[..] {
                [name] if *name == word.bytes() => {
                    paths.push((name.clone(), self.path(word).await?))
                }
                _ => paths.extend(found.into_iter().map(|name| {
                    let path = below(&self.directory, &name);
                    (name, path)
                })),
            }
        }
        Ok(paths)
    }

    /// Expands words to paths in the guest.
    pub(super) async fn paths(&self, words: &[Word]) -> anyhow::Result<Vec<RemotePath>> {
        let paths = self.named_paths(words).await?;
        Ok(paths.into_iter().map(|(_, path)| path).collect())
    }

    /// Expands a word to paths on the host.
    pub(super) async fn local_paths(&self, word: &Word) -> anyhow::Result<Vec<PathBuf>> {
        let found = expand(&Host, word).await?;
        Ok(match &found[..] {
            [name] if *name == word.bytes() => vec![expand::local(word)],
            _ => {
                let paths = found.into_iter().map(OsString::from_vec);
                paths.map(PathBuf::from).collect()
            }
        })
    }

    async fn change_directory(&mut self, path: Option<&Word>) -> anyhow::Result<()> {
        let Some(path) = path else {
            self.directory = self.home.clone();
            return Ok(());
        };
        let path = self.path(path).await?;
        let what = || format!("cannot change to {}", shown(&path));
        let real = self.sftp.realpath(&path).await.with_context(what)?;
        if !is_directory(&self.sftp.stat(&real).await.with_context(what)?) {
            bail!("{}: it is not a directory", what())
        }
        self.directory = real;
        Ok(())
    }

    async fn list(&self, view: View, words: &[Word]) -> anyhow::Result<()> {
        let paths = match words {
            [] => vec![(b".".to_vec(), self.directory.clone())],
            words => self.named_paths(words).await?,
        };
        let has_headers = paths.len() > 1;
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        for (name, path) in paths {
            match listing::content(&self.sftp, &path).await? {
                Content::File(file) => files.push(Listed { name, ..file }),
                Content::Directory => directories.push((name, path)),
            }
        }
        View { all: true, ..view }.arrange(&mut files);
        let columns = self.is_interactive.then(|| terminal::size().columns);
        let width = columns.map(usize::from);
        let has_files = !files.is_empty();
        // The names are relative to the current directory.
        view.print(&self.sftp, Some(&self.directory), &mut files, width)
            .await?;
        for (at, (name, path)) in directories.into_iter().enumerate() {
            if has_headers {
                let gap = if at > 0 || has_files { "\n" } else { "" };
                output::line(&format!("{gap}{}:", output::escape(&name)))?;
            }
            let mut listing = Listing::open(&self.sftp, &path).await?;
            while let Some(mut entries) = listing.next_part().await? {
                view.arrange(&mut entries);
                view.print(&self.sftp, Some(&path), &mut entries, width)
                    .await?;
            }
        }
        Ok(())
    }

    /// Renames as OpenSSH does: replaces an existing file if the agent supports that atomically.
    async fn rename(&self, old: &Word, new: &Word) -> anyhow::Result<()> {
        let (old, new) = (self.path(old).await?, self.path(new).await?);
        let renamed = if self.sftp.has_extension(extension::POSIX_RENAME) {
            self.sftp.replace(&old, &new).await
        } else {
            self.sftp.rename(&old, &new).await
        };
        renamed.with_context(|| format!("cannot rename {} to {}", shown(&old), shown(&new)))
    }

    async fn set_attribute(
        &self,
        attribute: Attribute,
        of_link: bool,
        path: &RemotePath,
    ) -> anyhow::Result<()> {
        let old = if of_link {
            self.sftp.lstat(path).await?
        } else {
            self.sftp.stat(path).await?
        };
        // SFTP sets user and group together.
        let owner = || old.owner.context("the agent does not send its owner");
        let mut attributes = Attributes::default();
        match attribute {
            Attribute::Mode(mode) => attributes.permissions = Some(mode),
            Attribute::Owner(uid) => attributes.owner = Some(Owner { uid, ..owner()? }),
            Attribute::Group(gid) => attributes.owner = Some(Owner { gid, ..owner()? }),
        }
        if of_link {
            self.sftp.lsetstat(path, attributes).await?
        } else {
            self.sftp.setstat(path, attributes).await?
        }
        Ok(())
    }

    /// Copies a file within the guest.
    async fn copy(&self, old: &Word, new: &Word) -> anyhow::Result<()> {
        let (old, mut new) = (self.path(old).await?, self.path(new).await?);
        if let Ok(attributes) = self.sftp.stat(&new).await
            && is_directory(&attributes)
        {
            let name = old.file_name().context("it has no name")?;
            new = new.join(name.as_encoded_bytes());
        }
        let mut options = CopyOptions::default();
        options.fsync = Some(false);
        let report = Report::for_prompt(false);
        let copied = copy::copy_within(&self.sftp, &old, &new, &options, &report).await;
        copied.with_context(|| format!("cannot copy {} to {}", shown(&old), shown(&new)))?;
        Ok(())
    }
}
