//! The guest agent: runs commands and moves files in a virtual machine for its host.
//!
//! This crate has no stable API: [`run`] is the program `vsock-agent`. Its tests create an [`Agent`] from a
//! [`Config`].
//!
//! ```text
//! main ─► daemon ─► agent ─┬─► server ─► api ─┬─► exec          one command and its streams
//!           │              │                  ├─► operation     what a client can wait for
//!           ▼              │                  ├─► events        what a client can listen to
//!         config           │                  ├─► sftp          files
//!                          │                  ├─► port_forward  a TCP port of the guest
//!                          │                  └─► system::state metrics and state of the guest
//!                          ├─► guest     instance data from the host, for programs in the guest
//!                          └─► lxd_host  LXD's and Incus's config share, status port, host address
//! ```
//!
//! `server` accepts connections and authenticates clients. `api` routes requests; it has a file for each
//! resource, which parses the request, calls the module behind it, and makes the reply. The modules
//! behind it do not know each other. `app` is the state that all requests share.
//!
//! Everything above may use what is below: `http` (addresses, TLS files, connections, replies and
//! websockets), which knows only `events`, and sends them; and `system` (the kernel's interfaces),
//! `defaults`, `shutdown` and `by_insertion`. `config` has the types of the modules that it configures.
//! No modules use each other in a circle.

mod agent;
mod api;
mod app;
mod by_insertion;
mod config;
mod daemon;
mod defaults;
mod events;
mod exec;
mod guest;
mod http;
mod lxd_host;
mod operation;
mod port_forward;
mod server;
mod sftp;
mod shutdown;
mod system;

pub use self::{
    agent::Agent,
    config::{CloudInit, Config, Feature, Features, GuestConfig, Security},
    daemon::run,
    exec::ExecPolicy,
    http::listen::ListenAddress,
    lxd_host::config_share::ConfigShare,
};
