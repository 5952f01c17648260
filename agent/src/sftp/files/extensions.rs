//! Runs EXTENDED requests.

use std::{io, os::unix::ffi::OsStrExt};

use bytes::Bytes;
use nix::{
    fcntl::{AtFlags, renameat},
    sys::statvfs::{FsFlags, Statvfs, fstatvfs, statvfs},
    unistd::{Uid, linkat},
};
use vsock_agent_protocol::sftp::{
    MAX_DATA_BYTES, MAX_FRAME_BYTES, Reply,
    extension::{FileSystem, IdLists, Limits, NameLists},
};

use super::{
    super::{
        SftpError,
        attributes::{self, ByPath},
        error::ok,
        extension::Extension,
        handles::BoundHandles,
        listing, ranges,
        realpath::real_path,
    },
    Files, done,
};
use crate::{defaults, system::accounts::Accounts};

impl Files {
    /// Runs an EXTENDED request.
    ///
    /// # Errors
    ///
    /// [`SftpError`], to be sent to the client.
    pub(super) fn run_extension(
        &self,
        extension: Extension,
        handles: BoundHandles,
    ) -> Result<Reply, SftpError> {
        let data = match (extension, handles) {
            (Extension::PosixRename { from, to }, _) => {
                let (from, to) = (self.tree.entry(&from)?, self.tree.entry(&to)?);
                return done(renameat(
                    from.directory(),
                    &*from.name,
                    to.directory(),
                    &*to.name,
                ));
            }
            (Extension::Hardlink { file, link }, _) => {
                let (file, link) = (self.tree.entry(&file)?, self.tree.entry(&link)?);
                return done(linkat(
                    file.directory(),
                    &*file.name,
                    link.directory(),
                    &*link.name,
                    AtFlags::empty(),
                ));
            }
            (Extension::Lsetstat(set), _) => {
                if set.attributes.size.is_some() {
                    return Err(SftpError::BadMessage("the size of a link cannot be set"));
                }
                let file = ByPath {
                    entry: self.tree.entry(&set.path)?,
                    follows: false,
                };
                return attributes::set(&file, &set.attributes).map(|()| ok());
            }
            (Extension::ExpandPath { path }, _) => return self.expand(&path),
            (Extension::HomeDirectory { user }, _) => return home(&user),
            (Extension::Fsync { .. }, BoundHandles::One(open)) => {
                // OpenSSH answers `NO_SUCH_FILE` to the handle of a directory.
                let file = open.file().map_err(|_| SftpError::ClosedHandle)?;
                file.sync_all()?;
                return Ok(ok());
            }
            (Extension::CopyData(copy), BoundHandles::Two(from, to)) => {
                return ranges::copy(&copy, &from, &to, &self.ended).map(|()| ok());
            }
            (Extension::Statvfs { path }, _) => {
                file_system(&statvfs(&self.tree.follow(&path)?.path())?).encode()
            }
            (Extension::Fstatvfs { .. }, BoundHandles::One(open)) => {
                file_system(&fstatvfs(open.file()?)?).encode()
            }
            (Extension::Hash(range), BoundHandles::One(open)) => {
                ranges::hash(&range, open.file()?, &self.ended)?.encode()
            }
            (Extension::Holes(from), BoundHandles::One(open)) => {
                ranges::holes(from.offset, open.file()?)?.encode()
            }
            (Extension::Replace(replace), _) => self.replace(&replace)?.encode(),
            (Extension::Store(store), _) => self.store(&store)?.encode(),
            (Extension::Fetch(fetch), _) => self.fetch(&fetch)?.encode(),
            (Extension::Limits, _) => limits(),
            (Extension::NamesById(ids), _) => names(&ids)?.encode(),
            _ => return Err(SftpError::UnknownHandle),
        };
        Ok(Reply::Extended { data })
    }

    /// REALPATH that knows `~` and `~user`. A session's own home is where its relative paths start.
    fn expand(&self, path: &[u8]) -> Result<Reply, SftpError> {
        let name = path.strip_prefix(b"~").map(|rest| {
            let end = rest.iter().position(|byte| *byte == b'/');
            rest.split_at(end.unwrap_or(rest.len()))
        });
        let path = match name {
            None => path.to_vec(),
            Some((b"", rest)) => [self.tree.home().as_os_str().as_bytes(), rest].concat(),
            Some((user, rest)) => {
                let home = home_of(user)?.ok_or(SftpError::UnknownUser)?;
                [home.as_bytes(), rest].concat()
            }
        };
        Ok(Reply::Names {
            names: listing::only(real_path(&self.tree, &path)?),
        })
    }
}

/// The home of a user, without a name that of this process.
fn home(user: &[u8]) -> Result<Reply, SftpError> {
    let home = match user {
        b"" => {
            let accounts = Accounts::read()?;
            let user = accounts.user_numbered(Uid::effective().as_raw());
            user.map(|user| user.home)
        }
        _ => home_of(user)?,
    };
    match home {
        Some(home) => Ok(Reply::Names {
            names: listing::only(home.into_bytes()),
        }),
        None => Err(io::Error::other("no such user").into()),
    }
}

fn home_of(user: &[u8]) -> io::Result<Option<String>> {
    let Ok(user) = str::from_utf8(user) else {
        return Ok(None);
    };
    let user = Accounts::read()?.user_named(user);
    Ok(user.map(|user| user.home))
}

fn names(ids: &IdLists) -> io::Result<NameLists> {
    let accounts = Accounts::read()?;
    let name = |name: Option<String>| Bytes::from(name.unwrap_or_default());
    let user = |uid: &u32| name(accounts.user_numbered(*uid).map(|user| user.name));
    let group = |gid: &u32| name(accounts.group_numbered(*gid));
    Ok(NameLists {
        users: ids.users.iter().map(user).collect(),
        groups: ids.groups.iter().map(group).collect(),
    })
}

fn file_system(system: &Statvfs) -> FileSystem {
    let mut flags = 0;
    for (flag, bit) in [
        (FsFlags::ST_RDONLY, FileSystem::READ_ONLY),
        (FsFlags::ST_NOSUID, FileSystem::NO_SETUID),
    ] {
        flags |= if system.flags().contains(flag) {
            bit
        } else {
            0
        };
    }
    FileSystem {
        block_size: system.block_size(),
        fragment_size: system.fragment_size(),
        blocks: system.blocks(),
        blocks_free: system.blocks_free(),
        blocks_available: system.blocks_available(),
        files: system.files(),
        files_free: system.files_free(),
        files_available: system.files_available(),
        id: system.filesystem_id(),
        flags,
        name_max: system.name_max(),
    }
}

fn limits() -> Bytes {
    Limits {
        packet: MAX_FRAME_BYTES.into(),
        read: MAX_DATA_BYTES.into(),
        write: MAX_DATA_BYTES.into(),
        handles: u64::try_from(defaults::MAX_SFTP_HANDLES).unwrap_or(u64::MAX),
    }
    .encode()
}
