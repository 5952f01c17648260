//! The server on standard input and output, as a program of its own: for `sftp -D`, for `sshd`'s
//! `Subsystem`, and for sessions of the agent that run as another user.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        prctl::set_dumpable,
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, chdir, setgid, setgroups, setuid},
};
use vsock_agent_protocol::sftp::SessionOptions;

use super::{Channel, Session, SessionError, Setup};
use crate::system::accounts::{Accounts, User};

/// Creation mask of a session as a given user: the usual one of a login. Any other has that of the
/// process.
const USER_UMASK: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);

/// Why the server on standard streams ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SftpServerError {
    /// No such user in `/etc/passwd`.
    #[error("there is no user {0:?}")]
    UnknownUser(String),
    /// The user could not be changed; only root may.
    #[error("cannot become the user {user:?}")]
    Identity {
        /// Name or number of the user.
        user: String,
        /// Error of the system call.
        source: io::Error,
    },
    /// The directory where paths start cannot be opened.
    #[error("cannot serve from {path}")]
    Root {
        /// The directory.
        path: PathBuf,
        /// Error of the system call.
        source: io::Error,
    },
    /// A system call failed that normally does not.
    #[error("cannot start")]
    System(#[source] io::Error),
    /// The session ended with an error.
    #[error("the session failed: {0}")]
    Session(String),
}

/// Serves one client on standard input and output, until it closes them. Relative paths start in
/// the working directory, or with [`SessionOptions::user`] in that user's home. To be called by a
/// process of its own, because it changes the user of the process.
///
/// # Errors
///
/// [`SftpServerError`].
pub(crate) fn serve_sftp_on_stdio(options: SessionOptions) -> Result<(), SftpServerError> {
    if let Some(user) = &options.user {
        become_user(user)?;
    }
    let home = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let root = options.root.clone();
    let setup =
        Setup::new(options, &home, Arc::default()).map_err(|source| SftpServerError::Root {
            path: root.map_or(home, PathBuf::from),
            source,
        })?;
    let stream = |fd: BorrowedFd<'_>| blocking(&fd).map_err(SftpServerError::System);
    let channel = Channel::pair(stream(io::stdin().as_fd())?, stream(io::stdout().as_fd())?);
    let (_session, over) =
        Session::start(channel, &[], setup, None).map_err(SftpServerError::System)?;
    match over.blocking_recv() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(SftpServerError::Session(describe(&error))),
        Err(_) => Err(SftpServerError::Session(
            "it ended without a result".to_owned(),
        )),
    }
}

fn describe(error: &SessionError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A descriptor of the same file, which waits when there is nothing to read.
///
/// # Errors
///
/// The errno of `fcntl(2)`.
pub(crate) fn blocking(fd: &impl AsFd) -> io::Result<OwnedFd> {
    let copy = fd.as_fd().try_clone_to_owned()?;
    let flags = OFlag::from_bits_retain(fcntl(&copy, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        fcntl(&copy, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    }
    Ok(copy)
}

/// The user with this name or number.
///
/// # Errors
///
/// [`SftpServerError::UnknownUser`], also when the accounts cannot be read.
pub(crate) fn find_user(name: &str) -> Result<(User, Accounts), SftpServerError> {
    let accounts = Accounts::read().map_err(SftpServerError::System)?;
    let numbered = || accounts.user_numbered(name.parse().ok()?);
    match accounts.user_named(name).or_else(numbered) {
        Some(user) => Ok((user, accounts)),
        None => Err(SftpServerError::UnknownUser(name.to_owned())),
    }
}

/// Changes the user of this process for good, and goes to the user's home.
fn become_user(name: &str) -> Result<(), SftpServerError> {
    let (user, accounts) = find_user(name)?;
    let identity = |errno: Errno| SftpServerError::Identity {
        user: name.to_owned(),
        source: errno.into(),
    };
    if Uid::effective().as_raw() != user.uid {
        // The agent is exempt from the OOM killer; a user's process must not be.
        let _ = fs::write("/proc/self/oom_score_adj", "0");
        let groups = accounts.groups_of(&user.name, user.gid);
        let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(identity)?;
        setgid(Gid::from_raw(user.gid)).map_err(identity)?;
        setuid(Uid::from_raw(user.uid)).map_err(identity)?;
        // The user must not read this process: no debugger, no core, no `/proc/PID/fd`.
        set_dumpable(false).map_err(identity)?;
    }
    umask(USER_UMASK);
    // A home may be missing, or not searchable by its user.
    chdir(Path::new(&user.home))
        .or_else(|_| chdir("/"))
        .map_err(identity)
}
