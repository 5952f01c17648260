//! The I/O that both ends share: [`tls`], [`vsock`] and [`http`]; [`Admission`], which limits
//! unauthenticated connections; and directories, Unix sockets and key files for processes that run as
//! root, in directories that other users can write to.
//!
//! A user who can write to a directory can replace any name in it between two system calls. So no
//! function here uses a name twice: a directory is opened once ([`open_directory`]), later calls use
//! descriptors, and a symbolic link is followed only if it must have been created by root or by this
//! process's own user. [`listen`] and [`connect`] are `bind(2)` and `connect(2)` under these rules.

mod admission;
mod blocking;
mod directory;
pub mod http;
mod owned;
mod secret;
mod socket;
pub mod tls;
pub mod vsock;

pub use self::{
    admission::{Admission, Limits, Slot},
    blocking::run_blocking,
    directory::{Missing, open_directory, open_entry},
    owned::is_our_own,
    secret::read_secret,
    socket::{MODE, SocketFile, connect, listen, listen_blocking},
};
