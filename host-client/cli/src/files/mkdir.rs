//! `mkdir`: creates directories in a guest.

use anyhow::Context;
use vsock_agent_client::{ClientError, RemotePath, Sftp, protocol::sftp::Attributes};

use super::{
    GuestPath,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{args::MkdirArgs, config::Settings};

/// `agent-cli mkdir`.
pub(crate) async fn mkdir(settings: &Settings, args: MkdirArgs) -> anyhow::Result<u8> {
    let mut guests = Guests::new(settings, args.session.options());
    operands::each(&args.paths, async |path| {
        let target = GuestPath::parse(path)?;
        let sftp = guests.session(&target.vm).await?;
        if args.parents {
            for parent in parents(&target.path) {
                create_or_find(&sftp, &parent).await?;
            }
        }
        let is_new = if args.parents {
            create_or_find(&sftp, &target.path).await?
        } else {
            create(&sftp, &target.path).await?;
            true
        };
        match args.mode {
            Some(mode) if is_new => set_mode(&sftp, &target.path, mode).await,
            _ => Ok(()),
        }
    })
    .await
}

/// Creates a directory with the guest's default mode.
pub(super) async fn create(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
    let made = sftp.mkdir(path, Attributes::default()).await;
    made.with_context(|| what(path))
}

/// Creates a directory unless it exists. Returns whether it was created.
async fn create_or_find(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<bool> {
    match sftp.mkdir(path, Attributes::default()).await {
        Ok(()) => Ok(true),
        // Servers send different codes if the path exists.
        Err(error @ ClientError::File { .. }) => match sftp.stat(path).await {
            Ok(attributes) if is_directory(&attributes) => Ok(false),
            _ => Err(error).with_context(|| what(path)),
        },
        Err(error) => Err(error).with_context(|| what(path)),
    }
}

/// Sets a mode in a separate request, because the guest's umask applies to that of MKDIR.
async fn set_mode(sftp: &Sftp, path: &RemotePath, mode: u32) -> anyhow::Result<()> {
    let attributes = Attributes {
        permissions: Some(mode),
        ..Attributes::default()
    };
    let set = sftp.setstat(path, attributes).await;
    set.with_context(|| format!("cannot set the mode of {}", shown(path)))
}

fn what(path: &RemotePath) -> String {
    format!("cannot create {}", shown(path))
}

/// The parent directories of a path, from the root on, without the root.
fn parents(path: &RemotePath) -> Vec<RemotePath> {
    let mut all = Vec::from_iter(std::iter::successors(path.parent(), RemotePath::parent));
    all.retain(|parent| parent.as_bytes() != b"/");
    all.reverse();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_a_path_start_below_the_root() {
        let all = parents(&RemotePath::from("/a/b//c/"));
        assert_eq!(all, ["/a", "/a/b"].map(RemotePath::from));
        assert!(parents(&RemotePath::from("/")).is_empty());
    }
}
