//! `push` and `pull`: copies files with the library, and reports progress as text or JSON.

pub(super) mod report;

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use anyhow::bail;
use vsock_agent_client::{
    RemotePath, Sftp,
    copy::{self, CopyError, CopyObserver, CopyOptions, CopySummary},
};

use self::report::Report;
use super::{GuestPath, interrupt::unless_interrupted};
use crate::{
    args::{CopyArgs, PullArgs, PushArgs},
    config::Settings,
    output,
    signals::{self, Signals},
    stdio,
};

/// The operand for stdin or stdout.
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
        options.fsync = (self.fsync || self.no_fsync).then_some(self.fsync);
        options
    }

    async fn session(&self, settings: &Settings, vm: &str) -> anyhow::Result<Sftp> {
        let client = settings.client(vm)?;
        Ok(client.sftp_with(&self.session.options()).await?)
    }
}

/// Splits paths into sources and a destination.
fn split_last(
    mut paths: Vec<OsString>,
    args: &CopyArgs,
) -> anyhow::Result<(Vec<OsString>, OsString)> {
    match paths.pop() {
        Some(_) if paths.len() > 1 && args.no_target_directory => bail!("-T takes one source"),
        Some(destination) if !paths.is_empty() => Ok((paths, destination)),
        _ => bail!("a source and a destination are needed"),
    }
}

/// `agent-cli push`.
pub(crate) async fn push(settings: &Settings, args: PushArgs) -> anyhow::Result<u8> {
    let (sources, destination) = split_last(args.paths, &args.copy)?;
    let target = GuestPath::parse(&destination)?;
    if sources.len() > 1 && sources.iter().any(|source| source == STDIO) {
        bail!("standard input cannot be one of several sources; a file of that name is ./-");
    }
    let sftp = args.copy.session(settings, &target.vm).await?;
    let (options, report) = (args.copy.options(), Report::new(&args.copy));
    let subject = subject(&sources, &destination);
    let copying = async {
        if sources == [STDIO] {
            let mut stdin = stdio::stdin_reader()?;
            let pushed = copy::push_stream(&sftp, &mut stdin, &target.path, &options, &report);
            return pushed.await.map_err(|error| match error {
                CopyError::Local { .. } => about(error, OsStr::new("standard input")),
                _ => about(error, &destination),
            });
        }
        let paths: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
        let pushed = copy::push(&sftp, &paths, &target.path, &options, &report);
        pushed.await.map_err(|error| match error {
            CopyError::Client(_) => about(error, &destination),
            _ if is_about_destination(&error) => about(error, &destination),
            _ => about(error, subject),
        })
    };
    let mut signals = Signals::of(&signals::TERMINATION)?;
    let copied = unless_interrupted(&mut signals, &[&sftp], copying).await;
    report.end(copied, subject)
}

/// `agent-cli pull`.
pub(crate) async fn pull(settings: &Settings, args: PullArgs) -> anyhow::Result<u8> {
    let (sources, destination) = split_last(args.paths, &args.copy)?;
    let mut by_vm: Vec<(String, Vec<RemotePath>)> = Vec::new();
    for source in &sources {
        let target = GuestPath::parse(source)?;
        match by_vm.last_mut() {
            Some((vm, paths)) if *vm == target.vm => paths.push(target.path),
            _ => by_vm.push((target.vm, vec![target.path])),
        }
    }
    let to_stdout = destination == STDIO;
    if to_stdout && args.copy.json {
        bail!("standard output cannot have both the file and JSON");
    }
    if sources.len() > 1 && !to_stdout && !Path::new(&destination).is_dir() {
        bail!("{}: no such directory", output::escape_path(&destination));
    }
    if by_vm.len() > 1 && !to_stdout {
        let mut names = HashSet::new();
        let paths = by_vm.iter().flat_map(|(_, paths)| paths);
        let mut all = paths.map(|path| path.file_name().unwrap_or(OsStr::new(".")));
        if let Some(name) = all.find(|name| !names.insert(*name)) {
            let name = output::escape_path(name);
            bail!("{name}: sources of several virtual machines have this name");
        }
    }
    let (options, report) = (args.copy.options(), Report::new(&args.copy));
    let mut sessions = Vec::new();
    for (vm, paths) in by_vm {
        sessions.push((args.copy.session(settings, &vm).await?, paths));
    }
    let subject = subject(&sources, &destination);
    let copying = async {
        let mut total = CopySummary::default();
        for (sftp, paths) in &sessions {
            total += if to_stdout {
                pull_to_stdout(sftp, paths, &options, &report).await?
            } else {
                let to = Path::new(&destination);
                let pulled = copy::pull(sftp, paths, to, &options, &report).await;
                pulled.map_err(|error| match error {
                    CopyError::Local { .. } => about(error, &destination),
                    _ if is_about_destination(&error) => about(error, &destination),
                    _ => about(error, subject),
                })?
            };
        }
        Ok(total)
    };
    let all: Vec<&Sftp> = sessions.iter().map(|(sftp, _)| sftp).collect();
    let mut signals = Signals::of(&signals::TERMINATION)?;
    let copied = unless_interrupted(&mut signals, &all, copying).await;
    report.end(copied, subject)
}

async fn pull_to_stdout(
    sftp: &Sftp,
    paths: &[RemotePath],
    options: &CopyOptions,
    observer: &dyn CopyObserver,
) -> anyhow::Result<CopySummary> {
    stdio::with_stdout(async |stdout| {
        let mut total = CopySummary::default();
        for path in paths {
            let pulled = copy::pull_stream(sftp, path, stdout, options, observer).await;
            total += pulled.map_err(|error| about(error, path.as_os_str()))?;
        }
        Ok(total)
    })
    .await
}

/// The subject of an error of a whole copy: the only source, or the destination.
fn subject<'a>(sources: &'a [OsString], destination: &'a OsStr) -> &'a OsStr {
    match sources {
        [source] => source,
        _ => destination,
    }
}

const fn is_about_destination(error: &CopyError) -> bool {
    matches!(
        error,
        CopyError::NotADirectory | CopyError::InTheWay | CopyError::PartGone
    )
}

fn about(error: CopyError, path: &OsStr) -> anyhow::Error {
    anyhow::Error::new(error).context(output::escape_path(path))
}
