//! `push` and `pull`: copies files with the library, and reports progress as text or JSON.

pub(super) mod report;

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

use anyhow::{anyhow, bail};
use tokio::io::AsyncRead;
use vsock_agent_client::{
    RemotePath, SessionOptions, Sftp,
    copy::{self, CopyError, CopyObserver, CopyOptions, CopySummary},
};

use self::report::Report;
use super::{GuestPath, interrupt::unless_interrupted, list::shown, split_last};
use crate::{
    args::{CopyArgs, PullArgs, PushArgs},
    config::Settings,
    signals::{self, Signals},
    stdio::{self, Sink},
};

/// The word for stdin and stdout.
const STDIO: &str = "-";

impl CopyArgs {
    fn options(&self) -> CopyOptions {
        let mut options = CopyOptions::default();
        options.recursive = self.recursive;
        options.resume = self.resume;
        options.exact = self.no_target_directory;
        options.owners = self.owner;
        options.special_bits = self.preserve_special;
        options.mode = self.mode;
        options.preserve = self.preserve;
        options.in_place = self.in_place;
        options.no_dereference = self.no_dereference;
        options.max_bytes = self.max_bytes;
        options.max_entries = self.max_entries.unwrap_or(options.max_entries);
        options.fsync = match (self.fsync, self.no_fsync) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        options
    }

    async fn session(&self, settings: &Settings, vm: &str) -> anyhow::Result<Sftp> {
        let mut options = SessionOptions::default();
        options.user.clone_from(&self.user);
        Ok(settings.client(vm)?.sftp_with(&options).await?)
    }
}

/// `agent-cli push`.
pub(crate) async fn push(settings: &Settings, args: PushArgs) -> anyhow::Result<u8> {
    let (sources, destination) = split_last(args.paths)?;
    let target = GuestPath::parse(&destination)?;
    if sources.len() > 1 && args.copy.no_target_directory {
        bail!("-T takes one source");
    }
    if sources.len() > 1 && sources.iter().any(|source| source == STDIO) {
        bail!("standard input cannot be one of several sources; a file of that name is ./-");
    }
    let sftp = args.copy.session(settings, &target.vm).await?;
    let (options, report) = (args.copy.options(), Report::new(&args.copy));
    let copying = async {
        match &sources[..] {
            [source] if source == STDIO => {
                let mut stdin = Stdin::start()?;
                let pushed =
                    copy::push_stream(&sftp, &mut stdin, &target.path, &options, &report).await;
                match &pushed {
                    Err(CopyError::Local { .. }) => named(pushed, OsStr::new("standard input")),
                    _ => named(pushed, &destination),
                }
            }
            sources => {
                let paths: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
                let pushed = copy::push(&sftp, &paths, &target.path, &options, &report).await;
                match &pushed {
                    // Here it reads, there it writes.
                    Err(
                        CopyError::Client(_)
                        | CopyError::NotADirectory
                        | CopyError::InTheWay
                        | CopyError::PartGone,
                    ) => named(pushed, &destination),
                    _ => named(pushed, one_of(sources, &destination)),
                }
            }
        }
    };
    let mut signals = Signals::of(&signals::ENDING)?;
    let copied = unless_interrupted(&mut signals, &[&sftp], copying).await;
    report.end(copied, one_of(&sources, &destination))
}

/// `agent-cli pull`.
pub(crate) async fn pull(settings: &Settings, args: PullArgs) -> anyhow::Result<u8> {
    let (sources, destination) = split_last(args.paths)?;
    let mut by_vm: Vec<(String, Vec<RemotePath>)> = Vec::new();
    for source in &sources {
        let target = GuestPath::parse(source)?;
        match by_vm.last_mut() {
            Some((vm, paths)) if *vm == target.vm => paths.push(target.path),
            _ => by_vm.push((target.vm, vec![target.path])),
        }
    }
    let to_stdout = destination == STDIO;
    if sources.len() > 1 && args.copy.no_target_directory {
        bail!("-T takes one source");
    }
    if to_stdout && args.copy.json {
        bail!("standard output cannot have both the file and JSON");
    }
    if sources.len() > 1 && !to_stdout && !Path::new(&destination).is_dir() {
        bail!("{}: there is no such directory", shown(&destination));
    }
    if by_vm.len() > 1 && !to_stdout {
        let mut names = HashSet::new();
        let paths = by_vm.iter().flat_map(|(_, paths)| paths);
        if let Some(twice) = paths
            .map(RemotePath::file_name)
            .find(|name| !names.insert(*name))
        {
            let name = shown(twice.unwrap_or(OsStr::new(".")));
            bail!("{name}: sources of several virtual machines have this name");
        }
    }
    let (options, report) = (args.copy.options(), Report::new(&args.copy));
    let mut sessions = Vec::new();
    for (vm, paths) in by_vm {
        sessions.push((args.copy.session(settings, &vm).await?, paths));
    }
    let copying = async {
        let mut total = CopySummary::default();
        for (sftp, paths) in &sessions {
            let pulled = if to_stdout {
                pull_to_stdout(sftp, paths, &options, &report).await?
            } else {
                let to = Path::new(&destination);
                let pulled = copy::pull(sftp, paths, to, &options, &report).await;
                match &pulled {
                    // There it reads, here it writes.
                    Err(
                        CopyError::Local { .. }
                        | CopyError::NotADirectory
                        | CopyError::InTheWay
                        | CopyError::PartGone,
                    ) => named(pulled, &destination)?,
                    _ => named(pulled, one_of(&sources, &destination))?,
                }
            };
            total += pulled;
        }
        Ok(total)
    };
    let all: Vec<&Sftp> = sessions.iter().map(|(sftp, _)| sftp).collect();
    let mut signals = Signals::of(&signals::ENDING)?;
    let copied = unless_interrupted(&mut signals, &all, copying).await;
    report.end(copied, one_of(&sources, &destination))
}

async fn pull_to_stdout(
    sftp: &Sftp,
    paths: &[RemotePath],
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> anyhow::Result<CopySummary> {
    let (near, mut far) = tokio::io::duplex(256 * 1024);
    let writing = stdio::copy_out(Some(near), Sink::Stdout);
    let reading = async {
        let mut total = CopySummary::default();
        for path in paths {
            let pulled = copy::pull_stream(sftp, path, &mut far, options, observer).await;
            match named(pulled, path.as_os_str()) {
                Ok(pulled) => total += pulled,
                Err(error) => return (far, Err(error)),
            }
        }
        (far, Ok(total))
    };
    let reading = async { reading.await.1 };
    let (read, written) = tokio::join!(reading, writing);
    // A closed stdout is also why nothing could be read any more.
    written?;
    read
}

/// The only source, or else the destination: what an error of a whole copy is about.
fn one_of<'a>(sources: &'a [OsString], destination: &'a OsStr) -> &'a OsStr {
    match sources {
        [source] => source,
        _ => destination,
    }
}

fn named(copied: Result<CopySummary, CopyError>, what: &OsStr) -> anyhow::Result<CopySummary> {
    copied.map_err(|error| anyhow!(error).context(shown(what)))
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
