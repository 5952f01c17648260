//! `cat`: prints files of a guest, also those without a size, such as devices.

use anyhow::{Context, bail};
use vsock_agent_client::{OpenOptions, RemotePath, Sftp};

use super::{
    GuestPath,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{args::CatArgs, config::Settings, stdio};

/// `agent-cli cat`.
pub(crate) async fn cat(settings: &Settings, args: CatArgs) -> anyhow::Result<u8> {
    let mut guests = Guests::new(settings, args.session.options());
    operands::each(&args.paths, async |path| {
        let target = GuestPath::parse(path)?;
        let sftp = guests.session(&target.vm).await?;
        print(&sftp, &target.path).await
    })
    .await
}

async fn print(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
    let what = || format!("cannot print {}", shown(path));
    if is_directory(&sftp.stat(path).await.with_context(what)?) {
        bail!("{}: it is a directory", what());
    }
    let file = sftp.open(path, OpenOptions::new().read(true)).await;
    let file = file.with_context(what)?;
    stdio::with_stdout(async |stdout| file.get(stdout).await.with_context(what)).await?;
    Ok(())
}
