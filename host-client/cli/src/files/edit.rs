//! `edit`: a file of a guest in the user's editor.
//!
//! ```text
//! read ─► draft ─► editor ─► the same? ── yes ─► nothing is written
//!                                └─ no ─► part beside the file ─► file as it was? ─► replace it
//!                                                                      └─ no ─► draft is kept
//! ```

mod draft;

use anyhow::{Context, bail};
use tokio::io::AsyncReadExt;
use vsock_agent_client::{
    OpenFlags, RemotePath, Sftp,
    copy::{self, CopyEvent, CopyObserver, CopyOptions},
    protocol::sftp::{Attributes, FileType, PERMISSION_BITS},
};

use self::draft::Draft;
use super::{Place, attributes::is_link, interrupt::unless_interrupted, shown};
use crate::{
    args::EditArgs,
    config::Settings,
    exit, output,
    signals::{self, Signals},
};

/// Largest file edited, in bytes: it is held three times.
const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;

/// Bytes on their way from the guest.
const BUFFER_BYTES: usize = 256 * 1024;

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
    let _pressed = Signals::of(&[libc::SIGINT])?;
    let mut ending = Signals::of(&[libc::SIGTERM, libc::SIGHUP])?;
    let old = before.as_ref().map(|before| &before.content[..]);
    let mut draft = Draft::create(name, old)?;
    let edited = tokio::select! {
        edited = draft.edit() => edited,
        signal = ending.next() => return Ok(interrupted(draft, signal)),
    };
    let mut signals = Signals::of(&signals::ENDING)?;

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
        save(&sftp, &path, before.as_ref(), new).await
    };
    let written = match unless_interrupted(&mut signals, &[&sftp], writing).await {
        Ok(written) => written,
        Err(signal) => return Ok(interrupted(draft, signal)),
    };
    if let Err(error) = written {
        draft.keep();
        let error = error.context(what());
        return Err(match draft.read() {
            Ok(Some(_)) => error.context(format!("what you wrote is kept in {draft}")),
            _ => error,
        });
    }
    Ok(0)
}

/// Ends because of a signal. What was written stays.
fn interrupted(mut draft: Draft, signal: i32) -> u8 {
    if !matches!(draft.read(), Ok(None)) {
        draft.keep();
        output::complain(&format!("interrupted: what you wrote is kept in {draft}"));
    }
    exit::after_signal(signal)
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
    if is_link(&sftp.lstat(&real).await?) {
        bail!("it is a link, and this agent does not say where to")
    } else {
        Ok(real)
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

/// Writes the new content, if the file is still as it was `before`. Between the last look and the
/// replacement there is a moment that no request of SFTP can close.
async fn save(
    sftp: &Sftp,
    path: &RemotePath,
    before: Option<&Version>,
    mut new: &[u8],
) -> anyhow::Result<()> {
    let unchanged = async || match Version::read(sftp, path).await {
        Ok(now) => now.as_ref() == before,
        Err(_) => false,
    };
    let options = CopyOptions::default();
    let told = Told(path);
    copy::push_stream_if(sftp, &mut new, path, &options, &told, unchanged).await?;
    Ok(())
}

/// Tells when the file is written in place.
struct Told<'a>(&'a RemotePath);

impl CopyObserver for Told<'_> {
    fn observe(&self, event: CopyEvent<'_>) {
        if let CopyEvent::InPlace { reason, .. } = event {
            output::complain(&format!("{}: written in place: {reason}", shown(self.0)));
        }
    }
}
