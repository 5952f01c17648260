//! Requests that not every server knows. Each is [`ClientError::Unsupported`] where the server did
//! not announce it.

use bytes::Bytes;

use super::{RemoteFile, RemotePath, Sftp, extended, status};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Attributes, Reply,
        extension::{
            self, CopyData, FileSystem, HashRange, Holes, HolesFrom, IdLists, MalformedExtension,
            NameLists, RangeHash, SetLinkAttributes, put_strings,
        },
    },
};

/// Names of users and groups of the guest, in the order of the ids that were asked for. They need not be
/// UTF-8; an empty one is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccountNames {
    /// Of the users.
    pub users: Vec<Vec<u8>>,
    /// Of the groups.
    pub groups: Vec<Vec<u8>>,
}

impl Sftp {
    /// Sets attributes of a path itself, of a link if it is one.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] when the server cannot, [`ClientError::File`] when it refuses,
    /// or another [`ClientError`].
    pub async fn lsetstat(
        &self,
        path: impl Into<RemotePath>,
        attributes: Attributes,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "set the attributes of a link";
        self.needs(extension::LSETSTAT, ACTION)?;
        let path = path.into().checked(ACTION)?;
        let data = SetLinkAttributes { path, attributes }.encode();
        self.done(extended(extension::LSETSTAT, data), ACTION).await
    }

    /// Gives a file one more name.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] when the server cannot, [`ClientError::File`] when it refuses,
    /// or another [`ClientError`].
    pub async fn hardlink(
        &self,
        file: impl Into<RemotePath>,
        link: impl Into<RemotePath>,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "create the hard link";
        self.needs(extension::HARDLINK, ACTION)?;
        let file = file.into().checked(ACTION)?;
        let link = link.into().checked(ACTION)?;
        let data = put_strings(&[&file, &link]);
        self.done(extended(extension::HARDLINK, data), ACTION).await
    }

    /// Size and free space of the file system of a path.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`hardlink`](Self::hardlink).
    pub async fn statvfs(&self, path: impl Into<RemotePath>) -> Result<FileSystem, ClientError> {
        const ACTION: &str = "read the size of the file system";
        let path = path.into().checked(ACTION)?;
        let data = put_strings(&[&path]);
        self.answer(extension::STATVFS, data, ACTION, FileSystem::decode)
            .await
    }

    /// Makes a path absolute; `~` and `~user` at its start are homes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`hardlink`](Self::hardlink).
    pub async fn expand_path(
        &self,
        path: impl Into<RemotePath>,
    ) -> Result<RemotePath, ClientError> {
        const ACTION: &str = "expand the path";
        let path = path.into().checked(ACTION)?;
        self.path_by(extension::EXPAND_PATH, &path, ACTION).await
    }

    /// The home directory of a user; of the session's own if `user` is empty.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`hardlink`](Self::hardlink).
    pub async fn home_directory(&self, user: &str) -> Result<RemotePath, ClientError> {
        const ACTION: &str = "find the home directory";
        self.path_by(extension::HOME_DIRECTORY, user.as_bytes(), ACTION)
            .await
    }

    /// Names of user and group ids, in the order of the ids, empty where there is none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`hardlink`](Self::hardlink); [`ClientError::Protocol`] when the answer has not as
    /// many names as there were ids.
    pub async fn users_groups_by_id(
        &self,
        users: &[u32],
        groups: &[u32],
    ) -> Result<AccountNames, ClientError> {
        let ids = IdLists {
            users: users.to_vec(),
            groups: groups.to_vec(),
        };
        let names = self
            .answer(
                extension::USERS_GROUPS_BY_ID,
                ids.encode(),
                "look up users and groups",
                NameLists::decode,
            )
            .await?;
        if (names.users.len(), names.groups.len()) == (users.len(), groups.len()) {
            let owned = |names: Vec<Bytes>| names.into_iter().map(Vec::from).collect();
            Ok(AccountNames {
                users: owned(names.users),
                groups: owned(names.groups),
            })
        } else {
            Err(self.at(ClientError::protocol("not a name for each id")))
        }
    }

    async fn path_by(
        &self,
        name: &'static str,
        argument: &[u8],
        action: &'static str,
    ) -> Result<RemotePath, ClientError> {
        self.needs(name, action)?;
        let request = extended(name, put_strings(&[argument]));
        self.one_name(request, action).await
    }

    /// Sends an extended request and reads what comes back.
    pub(super) async fn answer<T>(
        &self,
        name: &'static str,
        data: Bytes,
        action: &'static str,
        decode: impl FnOnce(Bytes) -> Result<T, MalformedExtension>,
    ) -> Result<T, ClientError> {
        self.needs(name, action)?;
        self.ask(extended(name, data), |reply| match reply {
            Reply::Extended { data } => decode(data)
                .map_err(|error| ClientError::protocol_because(format!("cannot {action}"), error)),
            reply => Err(status::refused(reply, action)),
        })
        .await
    }
}

impl RemoteFile {
    /// Size and free space of the file system of this file.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unsupported`] when the server cannot, [`ClientError::File`] when it refuses,
    /// or another [`ClientError`].
    pub async fn statvfs(&self) -> Result<FileSystem, ClientError> {
        let data = put_strings(&[self.handle()]);
        let action = "read the size of the file system";
        self.sftp()
            .answer(extension::FSTATVFS, data, action, FileSystem::decode)
            .await
    }

    /// Copies bytes of this file into another one, inside the guest. A `length` of 0 is
    /// everything to the end.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, any part may be copied, and the agent may go on.
    ///
    /// # Errors
    ///
    /// As for [`statvfs`](Self::statvfs).
    pub async fn copy_data(
        &self,
        from_offset: u64,
        length: u64,
        to: &Self,
        to_offset: u64,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "copy inside the guest";
        self.sftp().needs(extension::COPY_DATA, ACTION)?;
        let data = CopyData {
            from: self.handle().clone(),
            from_offset,
            length,
            to: to.handle().clone(),
            to_offset,
        };
        let request = extended(extension::COPY_DATA, data.encode());
        self.sftp().done(request, ACTION).await
    }

    /// The BLAKE3 hash of a range of the file, and how much of the range there was.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`statvfs`](Self::statvfs); [`ClientError::Protocol`] when the reply has more bytes
    /// than were requested.
    pub async fn hash(&self, offset: u64, length: u64) -> Result<RangeHash, ClientError> {
        let range = HashRange {
            handle: self.handle().clone(),
            offset,
            length,
        };
        let hash = self
            .sftp()
            .answer(
                extension::HASH,
                range.encode(),
                "hash the file",
                RangeHash::decode,
            )
            .await?;
        if hash.length <= length {
            Ok(hash)
        } else {
            let error = ClientError::protocol("the hash of more than was asked for");
            Err(self.sftp().at(error))
        }
    }

    /// The holes of the file from `offset` on, as many as fit in an answer.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// As for [`statvfs`](Self::statvfs).
    pub async fn holes(&self, offset: u64) -> Result<Holes, ClientError> {
        let from = HolesFrom {
            handle: self.handle().clone(),
            offset,
        };
        self.sftp()
            .answer(
                extension::HOLES,
                from.encode(),
                "find the holes of the file",
                Holes::decode,
            )
            .await
    }
}
