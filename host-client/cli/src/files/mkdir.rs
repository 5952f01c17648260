//! `mkdir`: directories in a guest.

use anyhow::Context;
use vsock_agent_client::{ClientError, RemotePath, Sftp, protocol::sftp::Attributes};

use super::{
    Place,
    attributes::is_directory,
    operands::{self, Guests},
    shown,
};
use crate::{args::MkdirArgs, config::Settings};

/// `agent-cli mkdir`.
pub(crate) async fn mkdir(settings: &Settings, args: MkdirArgs) -> anyhow::Result<u8> {
    let mut guests = Guests::new(settings, args.session.options());
    operands::each(&args.paths, async |path| {
        let place = Place::parse(path)?;
        let sftp = guests.session(&place.vm).await?;
        if args.parents {
            for above in above(&place.path) {
                make_or_find(&sftp, &above).await?;
            }
        }
        let is_new = if args.parents {
            make_or_find(&sftp, &place.path).await?
        } else {
            make(&sftp, &place.path).await.map(|()| true)?
        };
        match args.mode {
            Some(mode) if is_new => set_mode(&sftp, &place.path, mode).await,
            _ => Ok(()),
        }
    })
    .await
}

/// Creates a directory, with the mode that the guest gives new ones.
pub(super) async fn make(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<()> {
    let made = sftp.mkdir(path, Attributes::default()).await;
    made.with_context(|| what(path))
}

/// Creates a directory if there is none; tells whether it did.
async fn make_or_find(sftp: &Sftp, path: &RemotePath) -> anyhow::Result<bool> {
    match sftp.mkdir(path, Attributes::default()).await {
        Ok(()) => Ok(true),
        // Servers do not agree on the code for what is there already.
        Err(error @ ClientError::File { .. }) => match sftp.stat(path).await {
            Ok(attributes) if is_directory(&attributes) => Ok(false),
            _ => Err(error).with_context(|| what(path)),
        },
        Err(error) => Err(error).with_context(|| what(path)),
    }
}

/// By itself, because the guest's umask is laid over the mode of a new directory.
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

/// The directories above a path, the uppermost first.
fn above(path: &RemotePath) -> Vec<RemotePath> {
    let mut all: Vec<RemotePath> = std::iter::successors(path.parent(), RemotePath::parent)
        .filter(|above| above.as_bytes() != b"/")
        .collect();
    all.reverse();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_above_come_from_the_top() {
        let all = above(&RemotePath::from("/a/b//c/"));
        assert_eq!(all, ["/a", "/a/b"].map(RemotePath::from));
        assert!(above(&RemotePath::from("/")).is_empty());
    }
}
