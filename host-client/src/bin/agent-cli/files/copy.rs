//! `push` and `pull`: files, each whole under its name or not there.
//!
//! A file is written under a temporary name in its directory, compared in length, given its mode
//! and time, and renamed over what was there. What breaks off leaves the old file as it was.

use std::{
    ffi::{OsStr, OsString},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, bail};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncWriteExt},
};
use vsock_agent_client::{
    ClientError, OpenFlags, RemoteFile, RemotePath, Sftp, protocol::sftp::Attributes,
};

use super::{
    Place,
    list::{TYPE_DIRECTORY, TYPE_REGULAR, file_type, shown},
    split_last,
};
use crate::{
    args::{PullArgs, PushArgs},
    config::Settings,
    output,
    stdio::{self, Sink},
};

/// The word for stdin and stdout.
const STDIO: &str = "-";

/// Mode bits that are copied. The others give rights that belong to the file's owner, and owners
/// are not copied.
const MODE_MASK: u32 = 0o777;

/// Mode of a file that comes from stdin.
const DEFAULT_MODE: u32 = 0o644;

/// Mode of a file that is not complete yet.
const TEMPORARY_MODE: u32 = 0o600;

/// `agent-cli push`.
pub(crate) async fn push(settings: &Settings, args: PushArgs) -> anyhow::Result<u8> {
    let (sources, destination) = split_last(args.paths)?;
    let place = Place::parse(&destination)?;
    let sftp = settings.client(&place.vm)?.sftp().await?;
    push_all(&sftp, &sources, &place.path).await?;
    Ok(0)
}

async fn push_all(
    sftp: &Sftp,
    sources: &[OsString],
    destination: &RemotePath,
) -> anyhow::Result<()> {
    let is_directory = match sftp.stat(destination).await {
        Ok(attributes) => file_type(&attributes) == Some(TYPE_DIRECTORY),
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(about(destination, error.into())),
    };
    let wants_directory = sources.len() > 1 || destination.as_bytes().ends_with(b"/");
    if wants_directory && !is_directory {
        return Err(about(destination, anyhow!("there is no such directory")));
    }
    for source in sources {
        let target = match (is_directory, Path::new(source).file_name()) {
            (false, _) => destination.clone(),
            (true, Some(name)) if source != STDIO => destination.join(name.as_encoded_bytes()),
            (true, _) => bail!("{}: a name is needed for it in the guest", shown(source)),
        };
        push_one(sftp, source, &target)
            .await
            .map_err(|error| about(&target, error))
            .with_context(|| format!("cannot push {}", shown(source)))?;
    }
    Ok(())
}

/// Copies one file into the guest.
pub(super) async fn push_one(
    sftp: &Sftp,
    source: &OsStr,
    target: &RemotePath,
) -> anyhow::Result<()> {
    if source == STDIO {
        let old = sftp.stat(target).await.ok().and_then(|old| old.permissions);
        let attributes = Attributes {
            permissions: Some(old.unwrap_or(DEFAULT_MODE) & MODE_MASK),
            ..Attributes::default()
        };
        let mut stdin = Stdin::start()?;
        return push_stream(sftp, &mut stdin, attributes, target).await;
    }
    let mut file = File::open(source).await?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        bail!("it is not a regular file");
    }
    let modified = clamp(metadata.modified()?);
    let attributes = Attributes {
        permissions: Some(metadata.permissions().mode() & MODE_MASK),
        times: Some((modified, modified)),
        ..Attributes::default()
    };
    push_stream(sftp, &mut file, attributes, target).await
}

async fn push_stream(
    sftp: &Sftp,
    source: &mut (impl AsyncRead + Unpin),
    attributes: Attributes,
    target: &RemotePath,
) -> anyhow::Result<()> {
    let temporary = match target.parent() {
        Some(directory) => directory.join(temporary_name()),
        None => RemotePath::from(temporary_name()),
    };
    let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
    let private = Attributes {
        permissions: Some(TEMPORARY_MODE),
        ..Attributes::default()
    };
    let file = sftp.open(&temporary, flags, private).await?;
    let written = async {
        fill(file, source, attributes).await?;
        sftp.replace(&temporary, target).await
    };
    if let Err(error) = written.await {
        // The agent may be gone; then it stays, under a name that says what it is.
        let _ = sftp.remove(&temporary).await;
        return Err(error.into());
    }
    Ok(())
}

/// Fills a new file in the guest and closes it.
async fn fill(
    file: RemoteFile,
    source: &mut (impl AsyncRead + Unpin),
    attributes: Attributes,
) -> Result<(), ClientError> {
    let transferred = file.put(source).await?;
    file.setstat(attributes).await?;
    file.sync().await?;
    match file.stat().await?.size {
        Some(size) if size != transferred => {
            return Err(ClientError::SizeChanged { size, transferred });
        }
        _ => {}
    }
    file.close().await
}

/// `agent-cli pull`.
pub(crate) async fn pull(settings: &Settings, args: PullArgs) -> anyhow::Result<u8> {
    let (sources, destination) = split_last(args.paths)?;
    let sources = sources
        .iter()
        .map(|source| Place::parse(source))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let is_directory = Path::new(&destination).is_dir();
    let wants_directory = sources.len() > 1 || destination.as_encoded_bytes().ends_with(b"/");
    if destination != STDIO && wants_directory && !is_directory {
        bail!("{}: there is no such directory", shown(&destination));
    }
    let mut session: Option<(String, Sftp)> = None;
    for source in sources {
        let sftp = match &session {
            Some((vm, sftp)) if *vm == source.vm => sftp.clone(),
            _ => settings.client(&source.vm)?.sftp().await?,
        };
        session = Some((source.vm, sftp.clone()));
        let target = match (is_directory, source.path.file_name()) {
            (false, _) => PathBuf::from(&destination),
            (true, Some(name)) => Path::new(&destination).join(name),
            (true, None) => bail!("{}: it has no name", shown(source.path.as_os_str())),
        };
        pull_one(&sftp, &source.path, &target)
            .await
            .map_err(|error| about(&source.path, error))
            .with_context(|| format!("cannot pull to {}", shown(target.as_os_str())))?;
    }
    Ok(0)
}

/// Copies one file out of the guest.
pub(super) async fn pull_one(
    sftp: &Sftp,
    source: &RemotePath,
    target: &Path,
) -> anyhow::Result<()> {
    // Before it is opened: to open a pipe or a device can hang or do something.
    match file_type(&sftp.stat(source).await?) {
        Some(TYPE_REGULAR) | None => {}
        Some(TYPE_DIRECTORY) => bail!("it is a directory"),
        Some(_) => bail!("it is not a regular file"),
    }
    let file = sftp
        .open(source, OpenFlags::READ, Attributes::default())
        .await?;
    if target == Path::new(STDIO) {
        let (near, mut far) = tokio::io::duplex(256 * 1024);
        let writing = stdio::copy_out(Some(near), Sink::Stdout);
        let reading = async {
            let transferred = check_size(&file, file.get(&mut far).await);
            drop(far);
            transferred.await
        };
        let (read, written) = tokio::join!(reading, writing);
        // A closed stdout is also why nothing could be read any more.
        written?;
        read?;
        return Ok(());
    }
    let directory = match target.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let temporary = directory.join(temporary_name());
    let written = receive(&file, &temporary, target).await;
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

async fn receive(file: &RemoteFile, temporary: &Path, target: &Path) -> anyhow::Result<()> {
    let local = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(TEMPORARY_MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(temporary)?;
    let mut sink = File::from_std(local);
    let transferred = file.get(&mut sink).await;
    let attributes = check_size(file, transferred).await?;
    sink.flush().await?;
    sink.sync_all().await?;
    let local = sink.into_std().await;
    if let Some(mode) = attributes.permissions {
        local.set_permissions(std::fs::Permissions::from_mode(mode & MODE_MASK))?;
    }
    if let Some((_, modified)) = attributes.times {
        local.set_modified(UNIX_EPOCH + Duration::from_secs(modified.into()))?;
    }
    std::fs::rename(temporary, target)?;
    Ok(())
}

/// The file's attributes, if its size is what was transferred. Files that the guest's kernel makes
/// up have the size 0.
async fn check_size(
    file: &RemoteFile,
    transferred: Result<u64, ClientError>,
) -> Result<Attributes, ClientError> {
    let transferred = transferred?;
    let attributes = file.stat().await?;
    match attributes.size {
        Some(size) if size != 0 && size != transferred => {
            Err(ClientError::SizeChanged { size, transferred })
        }
        _ => Ok(attributes),
    }
}

fn about(path: &RemotePath, error: anyhow::Error) -> anyhow::Error {
    error.context(output::escape(path.as_bytes()))
}

/// A name nobody else has, and that says what it is.
fn temporary_name() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!(".agent-cli-{random:016x}.part")
}

/// Seconds since 1970, as near as the wire can tell.
fn clamp(time: SystemTime) -> u32 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => u32::try_from(since.as_secs()).unwrap_or(u32::MAX),
        Err(_) => 0,
    }
}

/// Stdin as something to read from.
#[derive(Debug)]
struct Stdin {
    pieces: tokio::sync::mpsc::Receiver<io::Result<bytes::Bytes>>,
    current: bytes::Bytes,
}

impl Stdin {
    fn start() -> io::Result<Self> {
        Ok(Self {
            pieces: stdio::stdin()?,
            current: bytes::Bytes::new(),
        })
    }
}

impl AsyncRead for Stdin {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.current.is_empty() {
            match std::task::ready!(this.pieces.poll_recv(cx)) {
                Some(piece) => this.current = piece?,
                None => return std::task::Poll::Ready(Ok(())),
            }
        }
        let count = this.current.len().min(buffer.remaining());
        buffer.put_slice(&this.current.split_to(count));
        std::task::Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_the_wire_cannot_tell_are_brought_to_its_edges() {
        assert_eq!(clamp(UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(clamp(UNIX_EPOCH + Duration::from_secs(1 << 33)), u32::MAX);
    }

    #[test]
    fn temporary_names_differ() {
        assert_ne!(temporary_name(), temporary_name());
    }
}
