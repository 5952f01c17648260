//! A client for SFTP version 3 on a connection that HTTP upgraded.
//!
//! The engine is our own, on the protocol's types. russh-sftp's client was tried and cannot be
//! used against an untrusted guest: a listing with many `.` entries overflows its stack, names
//! that are not UTF-8 are replaced, an unknown status code ends the session, a reply with more
//! data than asked for is taken, and its queue of requests has no bound.
//!
//! ```text
//! callers ──requests──► writer task ──►  agent      at most 64 requests in flight,
//!         ◄──replies─── reader task ◄──             matched by their id
//! ```
//!
//! Every reply is checked: length of the frame, known id, type of the reply, no more data than
//! requested, names that are one component.

mod data;
mod directory;
mod engine;
mod extensions;
mod file;
mod open_options;
mod part;
mod path;
#[cfg(test)]
pub(crate) mod scripted;
mod status;
mod transfer;
mod whole;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::{
    data::FileData,
    directory::{DirectoryEntry, DirectoryReader},
    extensions::AccountNames,
    file::RemoteFile,
    open_options::OpenOptions,
    path::RemotePath,
};
use self::{engine::Engine, part::Removal};
pub(crate) use self::{
    engine::{LocalSource, SILENCE_TIMEOUT},
    transfer::BATCH,
};
use crate::{
    endpoint::Endpoint,
    error::ClientError,
    protocol::sftp::{
        Attributes, MAX_DATA_BYTES, MAX_FRAME_BYTES, Reply, Request, SessionOptions,
        extension::{self, put_strings},
    },
};

/// Bytes requested at once from a server without `limits@openssh.com`: every server takes it
/// (draft-02, section 3, and the cap of `pkg/sftp`, which LXD's agents use).
const DEFAULT_DATA_BYTES: u32 = 32 * 1024;

/// Smallest data size that a server can impose: with less, a transfer would never end.
const MIN_DATA_BYTES: u32 = 4 * 1024;

/// A file session. Cheap to clone; clones share the connection, and their requests overlap.
///
/// Dropping the last clone, file and directory of a session ends it; the server closes what is
/// open.
#[derive(Debug, Clone)]
pub struct Sftp {
    engine: Arc<Engine>,
    sizes: Sizes,
    /// Removals that were not waited for.
    removals: Arc<Mutex<Vec<Removal>>>,
}

/// Most bytes of a file in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    read: u32,
    write: u32,
}

impl Sizes {
    const USUAL: Self = Self {
        read: DEFAULT_DATA_BYTES,
        write: DEFAULT_DATA_BYTES,
    };
}

impl Sftp {
    /// Exchanges versions on a new connection, and asks for the limits of the server, which may be silent
    /// for `silence` while a reply is due.
    pub(crate) async fn start<S>(stream: S, silence: Duration) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let engine = Arc::new(Engine::start(stream, silence).await?);
        let sizes = match engine.extension(extension::LIMITS) {
            Some(_) => limits(&engine).await,
            None => Sizes::USUAL,
        };
        Ok(Self {
            engine,
            sizes,
            removals: Arc::default(),
        })
    }

    /// The same, of the agent at `endpoint`.
    pub(crate) fn of(self, endpoint: &Endpoint) -> Self {
        self.engine.set_endpoint(endpoint);
        self
    }

    /// The endpoint of the agent.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        self.engine.endpoint()
    }

    /// Adds to an error which agent it is of.
    pub(crate) fn at(&self, error: ClientError) -> ClientError {
        self.engine.at(error)
    }

    /// Whether the server announced an extension, such as `fsync@openssh.com`.
    #[must_use]
    pub fn has_extension(&self, name: &str) -> bool {
        self.engine.extension(name).is_some()
    }

    /// Whether requests on one file are known to be done in their order, as draft-02 (section 6)
    /// wants. Go's `pkg/sftp` does those that read and write beside the others; of the servers in
    /// use it is the one that has no `fsync`.
    pub(crate) fn keeps_order(&self) -> bool {
        self.has_extension(extension::FSYNC)
    }

    /// Checks that the server announced a session with `options`.
    pub(crate) fn confirm(self, options: &SessionOptions) -> Result<Self, ClientError> {
        if options.is_default() {
            return Ok(self);
        }
        let session = self.engine.extension(extension::SESSION);
        if session.is_some_and(|session| **session == *options.to_query().as_bytes()) {
            Ok(self)
        } else {
            Err(ClientError::unsupported(
                "run a file session as a user, below a root or read-only",
            ))
        }
    }

    /// Opens a file.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, what was opened may stay open in the guest until the session ends. A
    /// file that was to be created may have been.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn open(
        &self,
        path: impl Into<RemotePath>,
        options: OpenOptions,
    ) -> Result<RemoteFile, ClientError> {
        let request = Request::Open {
            path: path.into().checked("open the file")?,
            flags: options.flags(),
            attributes: options.attributes,
        };
        let handle = self.handle(request, "open the file").await?;
        Ok(RemoteFile::new(self.clone(), handle))
    }

    /// Attributes of what a path leads to, links followed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn stat(&self, path: impl Into<RemotePath>) -> Result<Attributes, ClientError> {
        const ACTION: &str = "read the attributes";
        let path = path.into().checked(ACTION)?;
        self.attributes(Request::Stat { path }, ACTION).await
    }

    /// Attributes of a path itself, of a link if it is one.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn lstat(&self, path: impl Into<RemotePath>) -> Result<Attributes, ClientError> {
        const ACTION: &str = "read the attributes";
        let path = path.into().checked(ACTION)?;
        self.attributes(Request::Lstat { path }, ACTION).await
    }

    /// Sets attributes of what a path leads to. What is `None` stays.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn setstat(
        &self,
        path: impl Into<RemotePath>,
        attributes: Attributes,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "set the attributes";
        let path = path.into().checked(ACTION)?;
        let mut set = Ok(());
        for attributes in self.in_order(attributes) {
            let path = path.clone();
            let request = Request::Setstat { path, attributes };
            set = set.and(self.done(request, ACTION).await);
        }
        set
    }

    /// Attributes as they are to be set one after the other: a new owner takes special bits away, and
    /// OpenSSH's server sets the owner behind the mode (`process_setstat`, `sftp-server.c`). Ours does
    /// not.
    pub(crate) fn in_order(&self, attributes: Attributes) -> Vec<Attributes> {
        if attributes.owner.is_none() || attributes.permissions.is_none() || self.replaces() {
            return vec![attributes];
        }
        let owner = Attributes {
            owner: attributes.owner,
            ..Attributes::default()
        };
        let rest = Attributes {
            owner: None,
            ..attributes
        };
        vec![owner, rest]
    }

    /// Opens a directory to list it.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, what was opened may stay open in the guest until the session ends.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn read_dir(
        &self,
        path: impl Into<RemotePath>,
    ) -> Result<DirectoryReader, ClientError> {
        const ACTION: &str = "open the directory";
        let path = path.into().checked(ACTION)?;
        let handle = self.handle(Request::Opendir { path }, ACTION).await?;
        Ok(DirectoryReader::new(self.clone(), handle))
    }

    /// Creates a directory.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn mkdir(
        &self,
        path: impl Into<RemotePath>,
        attributes: Attributes,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "create the directory";
        let path = path.into().checked(ACTION)?;
        self.done(Request::Mkdir { path, attributes }, ACTION).await
    }

    /// Removes an empty directory.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn rmdir(&self, path: impl Into<RemotePath>) -> Result<(), ClientError> {
        const ACTION: &str = "remove the directory";
        let path = path.into().checked(ACTION)?;
        self.done(Request::Rmdir { path }, ACTION).await
    }

    /// Removes a file.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn remove(&self, path: impl Into<RemotePath>) -> Result<(), ClientError> {
        const ACTION: &str = "remove the file";
        let path = path.into().checked(ACTION)?;
        self.done(Request::Remove { path }, ACTION).await
    }

    /// Renames. Whether an existing target is replaced differs between servers: ours and OpenSSH's
    /// refuse, LXD's replace it.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn rename(
        &self,
        from: impl Into<RemotePath>,
        to: impl Into<RemotePath>,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "rename";
        let request = Request::Rename {
            from: from.into().checked(ACTION)?,
            to: to.into().checked(ACTION)?,
        };
        self.done(request, ACTION).await
    }

    /// Renames over whatever is at the target: in one step if the server can, else by removing
    /// the target first.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it. With a server that cannot do it in one
    /// step, the target may be gone.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn replace(
        &self,
        from: impl Into<RemotePath>,
        to: impl Into<RemotePath>,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "rename over the target";
        let from = from.into().checked(ACTION)?;
        let to = to.into().checked(ACTION)?;
        if self.has_extension(extension::POSIX_RENAME) {
            let data = put_strings(&[&from, &to]);
            return self
                .done(extended(extension::POSIX_RENAME, data), ACTION)
                .await;
        }
        match self
            .done(Request::Remove { path: to.clone() }, ACTION)
            .await
        {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.done(Request::Rename { from, to }, ACTION).await
    }

    /// Where a symbolic link points, as it was written.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn readlink(&self, path: impl Into<RemotePath>) -> Result<RemotePath, ClientError> {
        const ACTION: &str = "read the symbolic link";
        let path = path.into().checked(ACTION)?;
        self.one_name(Request::Readlink { path }, ACTION).await
    }

    /// Creates a symbolic link at `link` to `target`.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn symlink(
        &self,
        target: impl Into<RemotePath>,
        link: impl Into<RemotePath>,
    ) -> Result<(), ClientError> {
        const ACTION: &str = "create the symbolic link";
        let request = Request::Symlink {
            target: target.into().checked(ACTION)?,
            link: link.into().checked(ACTION)?,
        };
        self.done(request, ACTION).await
    }

    /// Makes a path absolute. Whether links in it are resolved differs between servers.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing changes when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn realpath(&self, path: impl Into<RemotePath>) -> Result<RemotePath, ClientError> {
        const ACTION: &str = "resolve the path";
        let path = path.into().checked(ACTION)?;
        self.one_name(Request::Realpath { path }, ACTION).await
    }

    /// Sends an extended request; returns the data of the reply, empty for OK.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the agent may or may not do it.
    ///
    /// # Errors
    ///
    /// [`ClientError::File`] when the agent refuses, or another [`ClientError`].
    pub async fn extended(
        &self,
        name: &str,
        data: impl Into<Vec<u8>>,
    ) -> Result<FileData, ClientError> {
        const ACTION: &str = "use the extension";
        self.ask(extended(name, data.into().into()), |reply| match reply {
            Reply::Extended { data } => Ok(FileData(data)),
            reply => status::done(reply, ACTION).map(|()| FileData::default()),
        })
        .await
    }

    /// Whether the connection has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.engine.has_ended()
    }

    /// Holds requests back until the returned guard is dropped, so that they go in one write.
    pub(crate) fn cork(&self) -> impl Drop + '_ {
        self.engine.cork()
    }

    /// Removes a file without waiting for the reply; [`Sftp::removed`] does.
    pub(crate) fn remove_now(&self, path: &RemotePath) {
        let path = Bytes::copy_from_slice(path.as_bytes());
        self.clean_up(&Request::Remove { path });
    }

    /// Sends a request that only [`Sftp::removed`] waits for.
    fn clean_up(&self, request: &Request) {
        if let Some(pending) = self.engine.submit_now(request) {
            self.removals().push(Removal::Asked(pending));
        }
    }

    fn removals(&self) -> MutexGuard<'_, Vec<Removal>> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and reads the reply.
    async fn ask<T>(
        &self,
        request: Request,
        read: impl FnOnce(Reply) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.engine.submit(request).await?.read(read).await
    }

    async fn done(&self, request: Request, action: &'static str) -> Result<(), ClientError> {
        self.ask(request, |reply| status::done(reply, action)).await
    }

    async fn handle(&self, request: Request, action: &'static str) -> Result<Bytes, ClientError> {
        self.ask(request, |reply| match reply {
            Reply::Handle { handle } => file::checked_handle(handle),
            reply => Err(status::refused(reply, action)),
        })
        .await
    }

    async fn attributes(
        &self,
        request: Request,
        action: &'static str,
    ) -> Result<Attributes, ClientError> {
        self.ask(request, |reply| match reply {
            Reply::Attributes { attributes } => Ok(attributes),
            reply => Err(status::refused(reply, action)),
        })
        .await
    }

    async fn one_name(
        &self,
        request: Request,
        action: &'static str,
    ) -> Result<RemotePath, ClientError> {
        self.ask(request, |reply| match reply {
            Reply::Names { mut names } if names.len() == 1 => {
                let name = names.remove(0).name;
                if name.is_empty() || name.contains(&0) {
                    Err(ClientError::protocol("a path that is none"))
                } else {
                    Ok(RemotePath::from_bytes(name))
                }
            }
            Reply::Names { .. } => Err(ClientError::protocol("not one path")),
            reply => Err(status::refused(reply, action)),
        })
        .await
    }

    fn needs(&self, extension: &str, what: &'static str) -> Result<(), ClientError> {
        if self.has_extension(extension) {
            Ok(())
        } else {
            Err(self.at(ClientError::unsupported(what)))
        }
    }
}

fn extended(name: &str, data: Bytes) -> Request {
    Request::Extended {
        name: Bytes::copy_from_slice(name.as_bytes()),
        data,
    }
}

/// Asks what the server can take. One that announces the question and does not answer it gets
/// what every server takes.
async fn limits(engine: &Engine) -> Sizes {
    let reply = match engine
        .submit(extended(extension::LIMITS, Bytes::new()))
        .await
    {
        Ok(pending) => pending.reply().await,
        Err(error) => Err(error),
    };
    match reply {
        Ok(Reply::Extended { data }) => read_limits(data),
        _ => Sizes::USUAL,
    }
}

/// Reads the reply to `limits`. A limit of 0 is none; whatever the reply, a request fits in a frame
/// and asks for something.
fn read_limits(data: Bytes) -> Sizes {
    let limits = match extension::Limits::decode(data) {
        Ok(limits) => limits,
        Err(_) => return Sizes::USUAL,
    };
    let within = |limit: u64, most: u32| match limit {
        0 => most,
        limit => u32::try_from(limit).map_or(most, |limit| limit.min(most)),
    };
    // A packet has the head of its request or reply besides the data.
    let room =
        within(limits.packet, MAX_FRAME_BYTES).saturating_sub(MAX_FRAME_BYTES - MAX_DATA_BYTES);
    let size = |limit| within(limit, room).max(MIN_DATA_BYTES);
    Sizes {
        read: size(limits.read),
        write: size(limits.write),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits_of(values: &[u64]) -> Sizes {
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_be_bytes())
            .collect();
        read_limits(data.into())
    }

    #[test]
    fn limits_are_taken_as_64_bit_numbers_and_never_above_a_frame() {
        let big = limits_of(&[1 << 32, 1 << 32, 1 << 32, 0]);
        assert_eq!((big.read, big.write), (MAX_DATA_BYTES, MAX_DATA_BYTES));
        let none = limits_of(&[0; 4]);
        assert_eq!((none.read, none.write), (MAX_DATA_BYTES, MAX_DATA_BYTES));
    }

    #[test]
    fn limits_that_nothing_could_be_done_with_are_not_kept() {
        for absurd in [[1; 4], [0, 1, 1, 1], [1, 0, 0, 0]] {
            let sizes = limits_of(&absurd);
            assert_eq!((sizes.read, sizes.write), (MIN_DATA_BYTES, MIN_DATA_BYTES));
        }
    }

    #[test]
    fn small_limits_are_kept() {
        let small = limits_of(&[34_000, 16_384, 8_192, 10]);
        assert_eq!((small.read, small.write), (16_384, 8_192));
    }

    #[test]
    fn a_short_answer_means_the_usual_sizes() {
        let none = limits_of(&[]);
        assert_eq!(none.read, DEFAULT_DATA_BYTES);
    }
}
