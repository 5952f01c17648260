//! Commands as they are done, one at a time.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vsock_agent_client::{
    RemotePath, Sftp,
    copy::{self, CopyOptions},
    protocol::sftp::{Attributes, Owner, extension},
};

use super::{
    command::{Change, Command},
    expand::{self, Guest, Host, below, expand},
    line::Word,
    shell, table,
};
use crate::{
    files::{
        attributes::is_directory,
        copy::report::Report,
        listing::{self, Content, Listed, Listing, View},
        mkdir,
        remove::Removal,
        shown, stat,
    },
    output, terminal,
};

/// Whether the next command is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Leave,
}

/// A conversation with a guest.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) sftp: Sftp,
    /// Where paths start that have no slash before them.
    pub(super) directory: RemotePath,
    /// Where it all started.
    home: RemotePath,
    /// Whether copies show how far they are.
    pub(super) shows_progress: bool,
    /// Width of the terminal, if there is one.
    has_width: bool,
}

impl Session {
    pub(super) async fn start(sftp: Sftp, is_person: bool) -> anyhow::Result<Self> {
        let home = sftp
            .realpath(".")
            .await
            .context("cannot find the directory to start in")?;
        Ok(Self {
            sftp,
            directory: home.clone(),
            home,
            shows_progress: is_person,
            has_width: is_person,
        })
    }

    /// Does one command.
    pub(super) async fn run(&mut self, command: Command) -> anyhow::Result<Next> {
        match command {
            Command::Bye => return Ok(Next::Leave),
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
            Command::Pwd => output::line(&format!(
                "Remote working directory: {}",
                shown(&self.directory)
            ))?,
            Command::Cd(path) => self.enter(path.as_ref()).await?,
            Command::Ls(view, paths) => self.list(view, &paths).await?,
            Command::Transfer(transfer) => self.transfer(&transfer).await?,
            Command::Rm {
                recursive,
                force,
                paths,
            } => {
                for path in self.paths(&paths).await? {
                    Removal { recursive, force }
                        .remove(&self.sftp, &path)
                        .await?;
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
            Command::Link { symbolic, old, new } => self.link(symbolic, &old, &new).await?,
            Command::Change {
                what,
                of_link,
                paths,
            } => {
                for path in self.paths(&paths).await? {
                    let changed = self.change(what, of_link, &path).await;
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
                    let facts = stat::Facts::of(&self.sftp, &path, false).await?;
                    output::lines(facts.lines())?;
                }
            }
            Command::Lcd(path) => {
                shell::enter(&path.as_ref().map_or_else(shell::home, expand::local))?
            }
            Command::Lpwd => {
                output::line(&format!("Local working directory: {}", shell::directory()?))?
            }
            Command::Lmkdir(path) => shell::make_directory(&expand::local(&path))?,
            Command::Lumask(mask) => {
                output::line(&format!("Local umask: {:03o}", shell::umask(mask)?))?
            }
            Command::Shell(line) => shell::run(&line).await?,
        }
        Ok(Next::Go)
    }

    /// The path in the guest that a word is. `~` at its start is a home, if the agent knows homes.
    pub(super) async fn path(&self, word: &Word) -> anyhow::Result<RemotePath> {
        let bytes = word.bytes();
        if word.is_home() && self.sftp.has_extension(extension::EXPAND_PATH) {
            let expanded = self.sftp.expand_path(&bytes[..]).await;
            return expanded.with_context(|| format!("cannot find {word}"));
        }
        Ok(below(&self.directory, &bytes))
    }

    /// The words behind their wildcards, and what is meant by each.
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

    /// The paths in the guest that words with wildcards are.
    pub(super) async fn paths(&self, words: &[Word]) -> anyhow::Result<Vec<RemotePath>> {
        let paths = self.named_paths(words).await?;
        Ok(paths.into_iter().map(|(_, path)| path).collect())
    }

    /// The paths on the host that a word with wildcards is.
    pub(super) async fn local_paths(&self, word: &Word) -> anyhow::Result<Vec<PathBuf>> {
        let found = expand(&Host, word).await?;
        Ok(match &found[..] {
            [name] if *name == word.bytes() => vec![expand::local(word)],
            _ => found.into_iter().map(path_of).collect(),
        })
    }

    async fn enter(&mut self, path: Option<&Word>) -> anyhow::Result<()> {
        let Some(path) = path else {
            self.directory = self.home.clone();
            return Ok(());
        };
        let path = self.path(path).await?;
        let what = || format!("cannot go to {}", shown(&path));
        let real = self.sftp.realpath(&path).await.with_context(what)?;
        if is_directory(&self.sftp.stat(&real).await.with_context(what)?) {
            self.directory = real
        } else {
            bail!("{}: it is not a directory", what())
        }
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
        let view_of_named = View { all: true, ..view };
        view_of_named.arrange(&mut files);
        let width = self
            .has_width
            .then(|| usize::from(terminal::size().columns));
        let has_files = !files.is_empty();
        // The paths of the links are relative to the current directory.
        view.print(&self.sftp, Some(&self.directory), &mut files, width)
            .await?;
        for (at, (name, path)) in directories.into_iter().enumerate() {
            if has_headers {
                let gap = if at > 0 || has_files { "\n" } else { "" };
                output::line(&format!("{gap}{}:", output::escape(&name)))?;
            }
            let mut listing = Listing::open(&self.sftp, &path).await?;
            while let Some(mut entries) = listing.part().await? {
                view.arrange(&mut entries);
                view.print(&self.sftp, Some(&path), &mut entries, width)
                    .await?;
            }
        }
        Ok(())
    }

    /// As OpenSSH does it: what is at the new name is replaced, if the agent can do that in one.
    async fn rename(&self, old: &Word, new: &Word) -> anyhow::Result<()> {
        let (old, new) = (self.path(old).await?, self.path(new).await?);
        let renamed = if self.sftp.has_extension(extension::POSIX_RENAME) {
            self.sftp.replace(&old, &new).await
        } else {
            self.sftp.rename(&old, &new).await
        };
        renamed.with_context(|| format!("cannot rename {} to {}", shown(&old), shown(&new)))
    }

    async fn link(&self, symbolic: bool, old: &Word, new: &Word) -> anyhow::Result<()> {
        let new = self.path(new).await?;
        let made = if symbolic {
            // The target of a link is not read.
            self.sftp.symlink(old.bytes(), &new).await
        } else {
            self.sftp.hardlink(self.path(old).await?, &new).await
        };
        made.with_context(|| format!("cannot link {old} to {}", shown(&new)))
    }

    async fn change(&self, what: Change, of_link: bool, path: &RemotePath) -> anyhow::Result<()> {
        let old = if of_link {
            self.sftp.lstat(path).await?
        } else {
            self.sftp.stat(path).await?
        };
        // Both are set at once, so the other one is needed too.
        let owner = || old.owner.context("the agent does not tell its owner");
        let mut attributes = Attributes::default();
        match what {
            Change::Mode(mode) => attributes.permissions = Some(mode),
            Change::Owner(uid) => attributes.owner = Some(Owner { uid, ..owner()? }),
            Change::Group(gid) => attributes.owner = Some(Owner { gid, ..owner()? }),
        }
        if of_link {
            self.sftp.lsetstat(path, attributes).await?
        } else {
            self.sftp.setstat(path, attributes).await?
        }
        Ok(())
    }

    /// Copies inside the guest.
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

fn path_of(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    Path::new(&std::ffi::OsString::from_vec(bytes)).to_owned()
}
