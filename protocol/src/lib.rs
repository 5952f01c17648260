//! The protocol of `vsock-agent`: requests, replies, events and SFTP frames, for agents and clients.
//!
//! Plain data and pure functions only. Nothing here opens a socket, reads a clock or spawns a task. A client
//! is in `vsock-agent-client`.
//!
//! ```
//! use vsock_agent_protocol::{exec::ExecRequest, path};
//!
//! let mut request = ExecRequest::new(vec!["uname".to_owned(), "-a".to_owned()]);
//! request.wait_for_websocket = true;
//! let body = serde_json::to_string(&request)?;
//! assert_eq!(path::EXEC, "/1.0/exec");
//! assert!(body.starts_with(r#"{"command":["uname","-a"]"#));
//! # Ok::<_, serde_json::Error>(())
//! ```
//!
//! | modules | content |
//! | --- | --- |
//! | [`path`], [`envelope`], [`version`], [`server_info`] | routes, the form of replies, versions and extensions |
//! | [`exec`], [`operation`], [`event`] | commands, operations, events |
//! | [`sftp`] | frames of SFTP and its extensions |
//! | [`state`], [`metrics`] | the state of the guest |
//! | [`guest_api`], [`host`], [`preset`] | instance data, and the metadata services made of them |
//! | [`address`], [`id`], [`port_forward`], [`printable`] | addresses, user ids, TCP ports, escapes for terminals |
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
//!
//! Types of JSON are `non_exhaustive`: make one with its constructor or `default`, then assign its fields.
//! Types of SFTP are not, because version 3 is final and an extension that changes gets another name.

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
