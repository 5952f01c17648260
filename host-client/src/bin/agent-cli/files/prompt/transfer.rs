//! `get` and `put`: the library's copies, with the words of the prompt.

use std::path::PathBuf;

use anyhow::{Context, bail};
use vsock_agent_client::copy::{self, CopyEvent, CopyObserver, CopyOptions, SkipReason};

use super::{
    command::{Direction, Transfer},
    expand,
    session::Session,
};
use crate::{exit, files::shown, output};

impl Session {
    pub(super) async fn transfer(&self, transfer: &Transfer) -> anyhow::Result<()> {
        let mut options = CopyOptions::default();
        options.recursive = transfer.recursive;
        options.resume = transfer.resume;
        options.fsync = transfer.sync.then_some(true);
        let summary = match transfer.direction {
            Direction::Get => {
                let sources = self.paths(std::slice::from_ref(&transfer.source)).await?;
                let target = transfer.target.as_ref().map(expand::local);
                let target = target.unwrap_or_else(|| PathBuf::from("."));
                let copied = copy::pull(&self.sftp, &sources, &target, &options, &Told).await;
                copied.with_context(|| format!("cannot get {}", transfer.source))?
            }
            Direction::Put => {
                let sources = self.local_paths(&transfer.source).await?;
                let target = match &transfer.target {
                    Some(target) => self.path(target).await?,
                    None => self.directory.clone(),
                };
                let copied = copy::push(&self.sftp, &sources, &target, &options, &Told).await;
                copied.with_context(|| {
                    format!("cannot put {} to {}", transfer.source, shown(&target))
                })?
            }
        };
        match summary.failed {
            0 => Ok(()),
            count => bail!("{count} of the files could not be copied"),
        }
    }
}

/// Says what is left out and what fails.
#[derive(Debug)]
struct Told;

impl CopyObserver for Told {
    fn observe(&self, event: CopyEvent<'_>) {
        match event {
            CopyEvent::Skipped { path, reason } => {
                let why = match reason {
                    SkipReason::Special => "not a regular file",
                    SkipReason::Directory => "a directory, see -r",
                    _ => return,
                };
                output::complain(&format!("{}: left out: {why}", output::escape(path)));
            }
            CopyEvent::Failed { path, error } => {
                exit::tell_about(&output::escape(path), error);
            }
            _ => {}
        }
    }
}
