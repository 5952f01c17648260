//! `edit`: a file of a guest in the user's editor.
//!
//! ```text
//! read ─► draft ─► editor ─► changed? ── no ─► nothing is written
//!                               └─ yes ─► write a temporary file ─► original unchanged? ─► rename
//!                                                                         └─ no ─► keep the draft
//! ```

mod draft;

use anyhow::{Context, bail};
use vsock_agent_client::{
    OpenOptions, RemotePath, Sftp,
    copy::{self, CopyEvent, CopyObserver, CopyOptions},
    protocol::sftp::{FileType, Owner, PERMISSION_BITS},
};

use self::draft::Draft;
use super::{GuestPath, attributes::is_link, interrupt::unless_interrupted, shown};
use crate::{
    args::EditArgs,
    config::Settings,
    exit, output,
    signals::{self, Signals},
};

/// Largest file that can be edited, in bytes. Memory holds three copies of it.
const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;

/// Most bytes of a read request.
const READ_BYTES: u32 = 256 * 1024;

/// `agent-cli edit`.
pub(crate) async fn edit(settings: &Settings, args: EditArgs) -> anyhow::Result<u8> {
    let target = GuestPath::parse(&args.path)?;
    let name = target.path.file_name().context("it has no name")?;
    let sftp = settings
        .client(&target.vm)?
        .sftp_with(&args.session.options())
        .await?;
    let what = || format!("cannot edit {}", shown(&target.path));
    let path = destination(&sftp, &target.path).await.with_context(what)?;
    let before = Version::read(&sftp, &path).await.with_context(what)?;

    // While the editor runs, Ctrl-C is for the editor.
    let _ignored = Signals::of(&[libc::SIGINT])?;
    let mut signals = Signals::of(&[libc::SIGTERM, libc::SIGHUP])?;
    let old = before.as_ref().map(|before| &before.content[..]);
    let mut draft = Draft::create(name, old)?;
    let edited = tokio::select! {
        edited = draft.edit() => edited,
        signal = signals.next() => return Ok(interrupted(draft, signal)),
    };
    let mut signals = Signals::of(&signals::TERMINATION)?;

    let new = match draft.read() {
        Ok(new) => new,
        Err(error) => {
            // The draft was changed, but cannot be read.
            draft.keep();
            return Err(error.context(what()));
        }
    };
    if new.as_deref() == old {
        edited?;
        output::eprint_error(&format!(
            "{}: unchanged, nothing was written",
            shown(&target.path)
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
            Ok(Some(_)) => error.context(format!("your changes are kept in {draft}")),
            _ => error,
        });
    }
    Ok(0)
}

/// The exit code after a signal. Keeps a changed draft.
fn interrupted(mut draft: Draft, signal: i32) -> u8 {
    if !matches!(draft.read(), Ok(None)) {
        draft.keep();
        output::eprint_error(&format!("interrupted: your changes are kept in {draft}"));
    }
    exit::after_signal(signal)
}

/// The file to edit: the path, or the target of a symbolic link.
async fn destination(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<RemotePath> {
    let attributes = match sftp.lstat(path).await {
        Err(error) if error.is_not_found() => return Ok(path.clone()),
        other => other?,
    };
    if !is_link(&attributes) {
        return Ok(path.clone());
    }
    sftp.stat(path).await.context("the link is dangling")?;
    let real = sftp.realpath(path).await?;
    // Not all servers resolve links.
    if is_link(&sftp.lstat(&real).await?) {
        bail!("it is a link, and this agent does not resolve links")
    }
    Ok(real)
}

/// The content of a file, and the attributes that replacing it changes.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    content: Vec<u8>,
    mode: Option<u32>,
    owner: Option<Owner>,
}

impl Version {
    /// Reads the file; `None` if it does not exist.
    async fn read(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<Option<Self>> {
        // Before the open, which can block on a FIFO and have side effects on a device.
        let attributes = match sftp.lstat(path).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        if !matches!(attributes.file_type(), None | Some(FileType::Regular)) {
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
    let file = sftp.open(path, OpenOptions::new().read(true)).await?;
    let mut content = Vec::new();
    while content.len() <= MAX_FILE_BYTES {
        let offset = u64::try_from(content.len())?;
        let bytes = file.read_at(offset, READ_BYTES).await?;
        if bytes.is_empty() {
            return Ok(content);
        }
        content.extend_from_slice(&bytes);
    }
    bail!("it is larger than {MAX_FILE_BYTES} bytes")
}

/// Writes the new content if the file is unchanged since `before`. SFTP cannot compare and rename
/// atomically, so a change just before the rename is lost.
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
    let observer = Observer(path);
    copy::push_stream_if(sftp, &mut new, path, &options, &observer, unchanged).await?;
    Ok(())
}

/// Prints a message when the file is written in place.
struct Observer<'a>(&'a RemotePath);

impl CopyObserver for Observer<'_> {
    fn observe(&self, event: CopyEvent<'_>) {
        if let CopyEvent::InPlace { reason, .. } = event {
            output::eprint_error(&format!("{}: written in place: {reason}", shown(self.0)));
        }
    }
}
