//! The I/O that both ends share: [`tls`], [`vsock`] and [`http`]; [`Admission`] for connections that
//! anybody can make; and directories, Unix sockets and key files for processes that run as root, where
//! others can write.
//!
//! Whoever can write to a directory can replace any name in it between two system calls. So nothing
//! here acts twice on a name: a directory is opened once ([`open_directory`]), what is done is done
//! to descriptors, and a symbolic link counts only if nobody but root or this process's own user can
//! have put it there. [`listen`] and [`connect`] are `bind(2)` and `connect(2)` on these terms.

mod admission;
mod apart;
mod directory;
pub mod http;
mod owned;
mod secret;
mod socket;
pub mod tls;
pub mod vsock;

pub use self::{
    admission::{Admission, Limits, Slot},
    apart::apart,
    directory::{Missing, open_directory, open_entry},
    owned::is_our_own,
    secret::read_secret,
    socket::{MODE, SocketFile, connect, listen, listen_blocking},
};
