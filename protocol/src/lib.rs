//! The protocol of the agent: requests, replies, events, SFTP frames.
//!
//! Plain data and pure functions only. Nothing here opens a socket, reads a clock or spawns a task, so that
//! the agent, the client and the tests can share it.
//!
//! # The wire contract
//!
//! Paths and JSON are those of LXD's agent (`lxd-agent` 5.0.2 and later, and `incus-agent`), so
//! that their hosts can drive this agent and this client can drive theirs:
//!
//! * JSON over HTTP/1.1, every reply in an [`envelope`].
//! * A command is an [`operation`] whose streams are websockets, one a stream, each joined once
//!   with a secret ([`exec`]). Data is binary; a text message is the end of that direction.
//! * Files are SFTP version 3 on a connection that HTTP upgraded ([`sftp`]).
//!
//! # Changing it
//!
//! The JSON of each type is frozen in `tests/wire/`. A new field is optional and defaults to the
//! old behaviour; a new ability gets a name in [`version::API_EXTENSIONS`]; nothing is renamed.
//! Readers accept `null` where a map or list is expected, because Go writes empty ones that way, and
//! agents take a field of a request that is `null` for one that is not set.

pub mod address;
pub mod envelope;
pub mod event;
pub mod exec;
pub mod guest_api;
pub mod host;
pub mod id;
pub mod metrics;
pub mod operation;
pub mod path;
pub mod port_forward;
pub mod preset;
pub mod printable;
pub mod server_info;
pub mod sftp;
pub mod state;
pub mod version;

mod null;

pub use null::null_as_default;
