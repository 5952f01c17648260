//! `cat`: files of a guest on stdout, also those that have no size, such as devices.

use anyhow::{Context, bail};
use vsock_agent_client::{OpenFlags, RemotePath, Sftp, protocol::sftp::Attributes};

use super::{
    Place,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{
    args::CatArgs,
    config::Settings,
    stdio::{self, Sink},
};

/// Bytes on their way from the guest to stdout.
const BUFFER_BYTES: usize = 256 * 1024;

/// `agent-cli cat`.
pub(crate) async fn cat(settings: &Settings, args: CatArgs) -> anyhow::Result<u8> {
    let mut guests = Guests::new(settings, args.session.options());
    operands::each(&args.paths, async |path| {
        let place = Place::parse(path)?;
        let sftp = guests.session(&place.vm).await?;
        print(&sftp, &place.path).await
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
    // A closed stdout is also why nothing could be read any more.
    written?;
    read.with_context(what)?;
    Ok(())
}
