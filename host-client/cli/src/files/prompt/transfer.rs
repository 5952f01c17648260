//! `get` and `put`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use vsock_agent_client::copy::{self, CopyOptions};

use super::{
    command::{Direction, Transfer},
    expand,
    session::Session,
};
use crate::files::{copy::report::Report, shown};

impl Session {
    pub(super) async fn transfer(&self, transfer: &Transfer) -> anyhow::Result<()> {
        let mut options = CopyOptions::default();
        options.recursive = transfer.recursive;
        options.resume = transfer.resume;
        options.fsync = transfer.sync.then_some(true);
        let report = Report::for_prompt(self.shows_progress);
        let summary = match transfer.direction {
            Direction::Get => {
                let sources = self.paths(std::slice::from_ref(&transfer.source)).await?;
                // A local link must not redirect a name that the guest chose.
                let named = self.path(&transfer.source).await?;
                options.no_dereference = sources != [named];
                let target = transfer.target.as_ref().map(expand::local);
                let target = target.unwrap_or_else(|| PathBuf::from("."));
                let copied = copy::pull(&self.sftp, &sources, &target, &options, &report).await;
                copied.with_context(|| format!("cannot get {}", transfer.source))?
            }
            Direction::Put => {
                let sources = self.local_paths(&transfer.source).await?;
                let target = match &transfer.target {
                    Some(target) => self.path(target).await?,
                    None => self.directory.clone(),
                };
                let copied = copy::push(&self.sftp, &sources, &target, &options, &report).await;
                copied.with_context(|| {
                    format!("cannot put {} to {}", transfer.source, shown(&target))
                })?
            }
        };
        drop(report);
        match summary.failed {
            0 => Ok(()),
            count => bail!("{count} of the files could not be copied"),
        }
    }
}
