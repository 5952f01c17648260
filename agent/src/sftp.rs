//! The SFTP server, version 3.
//!
//! Called by `api/sftp.rs` with a connection, and by the sub-command with its standard streams.
//! Owns the open files of a session and its threads; knows nothing of HTTP.
//!
//! `russh-sftp` gives the numbers of status codes. Its server loop is not used: after an over-long
//! frame it reads the file's contents as requests, it retries a dead connection for ever, it takes
//! one request at a time, and names that are not UTF-8 lose their bytes.
//!
//! ```text
//! stream ─► input ─► session ─► request ─► access ─► scheduler   may it run now?
//!                       │                └► handles               the files of its handles
//!                       └► files ─► tree                          the files of its paths
//! ```

mod access;
mod as_user;
mod attributes;
mod budget;
mod error;
mod extension;
mod file_io;
mod files;
mod handles;
mod input;
mod listing;
mod ranges;
mod realpath;
mod reply_buffer;
mod request;
mod scheduler;
mod session;
mod stdio;
mod stream;
mod tree;

pub(crate) use as_user::SUB_COMMAND;
pub(crate) use as_user::UserSession;
pub(crate) use budget::Budget;
pub(crate) use error::{SessionError, SftpError};
pub(crate) use session::{Session, Setup};
pub(crate) use stdio::{SftpServerError, blocking, find_user, serve_sftp_on_stdio};
pub(crate) use stream::Channel;
use stream::output;
