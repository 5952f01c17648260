//! `edit`: a file of a guest in the user's editor.
//!
//! ```text
//! read ─► draft ─► editor ─► the same? ── yes ─► nothing is written
//!                                └─ no ─► part beside the file ─► file as it was? ─► rename
//!                                                                      └─ no ─► draft is kept
//! ```

mod draft;

use anyhow::{Context, bail};
use futures_util::FutureExt;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};
use vsock_agent_client::{
    OpenFlags, RemotePath, Sftp,
    protocol::sftp::{Attributes, FileType, PERMISSION_BITS},
};

use self::draft::Draft;
use super::{Place, attributes::is_link, part_beside, shown};
use crate::{args::EditArgs, config::Settings, output};

/// Largest file edited, in bytes: it is held three times.
const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;

/// Bytes on their way from the guest.
const BUFFER_BYTES: usize = 256 * 1024;

/// Mode of a new file.
const NEW_MODE: u32 = 0o644;

/// Mode of a file that is not complete yet.
const PART_MODE: u32 = 0o600;

/// `agent-cli edit`.
pub(crate) async fn edit(settings: &Settings, args: EditArgs) -> anyhow::Result<u8> {
    let place = Place::parse(&args.path)?;
    let name = place.path.file_name().context("it has no name")?;
    let sftp = settings
        .client(&place.vm)?
        .sftp_with(&args.session.options())
        .await?;
    let what = || format!("cannot edit {}", shown(&place.path));
    let path = destination(&sftp, &place.path).await.with_context(what)?;
    let before = Version::read(&sftp, &path).await.with_context(what)?;

    // The editor has the terminal: what the user means for it must not end us. What is pressed
    // later must.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let old = before.as_ref().map(|before| &before.content[..]);
    let mut draft = Draft::create(name, old)?;
    let edited = draft.edit().await;
    while interrupts.recv().now_or_never().flatten().is_some() {}

    let new = match draft.read() {
        Ok(new) => new,
        Err(error) => {
            // Something was written that we cannot read.
            draft.keep();
            return Err(error.context(what()));
        }
    };
    if new.as_deref() == old {
        edited?;
        output::complain(&format!(
            "{}: unchanged, nothing was written",
            shown(&place.path)
        ));
        return Ok(0);
    }
    let writing = async {
        edited?;
        let new = new.as_deref().context("the editor removed the file")?;
        let saving = Saving {
            sftp: &sftp,
            path: &path,
            part: part_beside(&path),
        };
        tokio::select! {
            outcome = saving.save(before.as_ref(), new) => outcome,
            _ = interrupts.recv() => {
                saving.abandon().await;
                bail!("interrupted")
            }
        }
    };
    if let Err(error) = writing.await {
        draft.keep();
        let error = error.context(what());
        return Err(match draft.read() {
            Ok(Some(_)) => error.context(format!("what you wrote is kept in {draft}")),
            _ => error,
        });
    }
    Ok(0)
}

/// The file that a path leads to. A link stays, and what it leads to is edited.
async fn destination(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<RemotePath> {
    let attributes = match sftp.lstat(path).await {
        Err(error) if error.is_not_found() => return Ok(path.clone()),
        other => other?,
    };
    if !is_link(&attributes) {
        return Ok(path.clone());
    }
    sftp.stat(path).await.context("the link leads nowhere")?;
    let real = sftp.realpath(path).await?;
    // Not every server resolves links.
    match is_link(&sftp.lstat(&real).await?) {
        true => bail!("it is a link, and this agent does not say where to"),
        false => Ok(real),
    }
}

/// A file at some time: all that writing it anew would change.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    content: Vec<u8>,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
}

impl Version {
    /// Reads it; `None` if it is not there.
    async fn read(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Option<Self>> {
        // Before it is opened: to open a pipe or a device can hang or do something.
        let attributes = match sftp.lstat(path).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        if attributes
            .file_type()
            .is_some_and(|kind| kind != FileType::Regular)
        {
            bail!("it is not a regular file");
        }
        Ok(Some(Self {
            content: content(sftp, path).await?,
            mode: attributes.permissions.map(|mode| mode & PERMISSION_BITS),
            owner: attributes.owner,
        }))
    }
}

async fn content(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Vec<u8>> {
    let file = sftp
        .open(path, OpenFlags::READ, Attributes::default())
        .await?;
    let (near, mut far) = tokio::io::duplex(BUFFER_BYTES);
    let reading = async {
        let outcome = file.get(&mut far).await;
        drop(far);
        outcome
    };
    let taking = async {
        let mut content = Vec::new();
        let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX);
        near.take(limit + 1)
            .read_to_end(&mut content)
            .await
            .map(|_| content)
    };
    let (read, content) = tokio::join!(reading, taking);
    let content = content?;
    if content.len() > MAX_FILE_BYTES {
        bail!("it is larger than {MAX_FILE_BYTES} bytes");
    }
    read?;
    Ok(content)
}

/// A file on its way back.
#[derive(Debug)]
struct Saving<'a> {
    sftp: &'a Sftp,
    path: &'a RemotePath,
    part: RemotePath,
}

impl Saving<'_> {
    /// Writes the new content, if the file is still as it was `before`.
    async fn save(&self, before: Option<&Version>, new: &[u8]) -> anyhow::Result<()> {
        let saved = async {
            self.fill(before, new).await?;
            self.rename(before).await
        };
        let saved = saved.await;
        if saved.is_err() {
            self.abandon().await;
        }
        saved
    }

    async fn fill(&self, before: Option<&Version>, mut new: &[u8]) -> anyhow::Result<()> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let mode = |mode| Attributes {
            permissions: Some(mode),
            ..Attributes::default()
        };
        let file = self.sftp.open(&self.part, flags, mode(PART_MODE)).await?;
        file.put(&mut new).await?;
        let owner = before.and_then(|before| before.owner);
        if owner.is_some() && file.stat().await?.owner != owner {
            let attributes = Attributes {
                owner,
                ..Attributes::default()
            };
            file.setstat(attributes)
                .await
                .context("cannot keep its owner")?;
        }
        // After the owner, whose change takes setuid and setgid away.
        let old = before.and_then(|before| before.mode);
        file.setstat(mode(old.unwrap_or(NEW_MODE)))
            .await
            .context("cannot keep its mode")?;
        file.sync().await?;
        file.close().await?;
        Ok(())
    }

    /// Gives the part the file's name. Between the last look and this there is a moment that no
    /// request of SFTP can close.
    async fn rename(&self, before: Option<&Version>) -> anyhow::Result<()> {
        if Version::read(self.sftp, self.path).await?.as_ref() != before {
            bail!("it was changed by somebody else meanwhile: nothing was written");
        }
        match before {
            Some(_) => self.sftp.replace(&self.part, self.path).await?,
            None => self.sftp.rename(&self.part, self.path).await?,
        }
        Ok(())
    }

    /// Removes the part. The agent may be gone; then it stays, under a name that says what it is.
    async fn abandon(&self) {
        let _ = self.sftp.remove(&self.part).await;
    }
}
