//! `cat`: files of a guest on stdout, also those that have no size, such as devices.

use anyhow::{Context, bail};
use vsock_agent_client::{OpenFlags, RemotePath, Sftp, protocol::sftp::Attributes};

use super::{
    GuestPath,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{
    args::CatArgs,
    config::Settings,
    stdio::{self, Sink},
};

/// Size of the buffer between the guest and stdout, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

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
    let file = sftp
        .open(path, OpenFlags::READ, Attributes::default())
        .await;
    let file = file.with_context(what)?;
    let (near, mut far) = tokio::io::duplex(BUFFER_BYTES);
    let reading = async {
        let outcome = file.get(&mut far).await;
        drop(far);
        outcome
    };
    let (read, written) = tokio::join!(reading, stdio::copy_out(Some(near), Sink::Stdout));
    // First: a closed stdout also makes the read fail.
    written?;
    read.with_context(what)?;
    Ok(())
}
