//! The I/O that `vsock-agent` and its host share. It knows nothing of their requests and replies: those are
//! in `vsock-agent-protocol`, a client is in `vsock-agent-client`.
//!
//! | item | content |
//! | --- | --- |
//! | [`tls`] | mutual TLS 1.3 with pinned certificates |
//! | [`vsock`] | AF_VSOCK sockets with their buffer sizes and privileged ports |
//! | [`http`] | one HTTP/1.1 connection as a client, and bodies that are made elsewhere |
//! | [`Listener`], [`Stream`] | sockets of any family |
//! | [`pieces`] | a queue of bytes whose peer is bounded by a window |
//! | [`Admission`] | a limit for connections that are not authenticated yet |
//! | [`listen`], [`connect`], [`open_directory`], [`read_secret`] | Unix sockets, directories and key files |
//!
//! The types of hyper, nix, rustls and tokio-vsock in this API are those of the versions that this crate
//! depends on; a new major version of one of them is a new major version of this crate.
//!
//! # Directories of other users
//!
//! A user who can write to a directory can replace any name in it between two system calls. So no
//! function here uses a name twice: a directory is opened once ([`open_directory`]), later calls use
//! descriptors, and a symbolic link is followed only if it must have been created by root or by this
//! process's own user. [`listen`] and [`connect`] are `bind(2)` and `connect(2)` under these rules.

mod admission;
mod blocking;
mod directory;
pub mod http;
mod listener;
mod owned;
mod pieces;
mod secret;
mod socket;
mod stream;
pub mod tls;
pub mod vsock;

pub use self::{
    admission::{Admission, Limits, Slot},
    blocking::run_blocking_on,
    directory::{Missing, open_directory},
    listener::{Listener, Peer, accept},
    owned::is_our_own,
    pieces::{Piece, PieceReceiver, PieceSender, pieces},
    secret::read_secret,
    socket::{MODE, SocketFile, connect, connect_in, listen, listen_blocking},
    stream::{Closer, Stream, Watch},
};
