//! The guest agent: runs commands and moves files in a virtual machine for its host.
//!
//! This crate has no stable API: it is the program `vsock-agent`, and what its tests need. [`Agent`]
//! is created from a [`Config`].
//!
//! ```text
//! main ─► agent ─► http ─► api ─┬─► exec          one command and its streams
//!           │                   ├─► operation     what a client can wait for
//!           │                   ├─► events        what a client can listen to
//!           │                   ├─► sftp          files
//!           │                   ├─► port_forward  a TCP port of the guest
//!           │                   └─► system::state metrics and state of the guest
//!           ├─► guest      instance data from the host, for programs in the guest and cloud-init
//!           └─► lxd_host   LXD's and Incus's config share, status port and host address
//! ```
//!
//! `http` accepts connections, routes requests and writes replies. `api` has a file for each resource:
//! it parses the request, calls the module behind it, and makes the reply. The modules behind it do not
//! know each other, except that `exec` and `operation` use the websockets of `http`. `guest` serves its
//! sockets with the connections of `http`, and runs its requests to the host through them. `system`
//! wraps the kernel's interfaces; anybody may use it, as `defaults`, `shutdown` and `yaml`.

mod agent;
mod api;
mod app;
mod by_insertion;
mod config;
mod defaults;
mod events;
mod exec;
mod guest;
mod http;
mod lxd_host;
mod operation;
mod port_forward;
mod sftp;
mod shutdown;
mod system;

pub use self::http::listen::{ListenAddress, ParseListenError};
pub use self::http::tls::{IdentityError, PemFileError};
pub use self::lxd_host::config_share::{ConfigShare, FetchError, fetch_config_share};
pub use self::system::log::{LogLimit, log_to_stderr};
pub use self::system::notify::notify;
pub use agent::{Agent, BindError, Reloader};
pub use config::{
    CloudInit, CommandLine, Config, ConfigError, Feature, Features, FeaturesError, Flags,
    GuestConfig, ParseCloudInitError, Security,
};
pub use exec::{CommandPattern, ExecPolicy, ParsePatternError};
pub use sftp::{SftpServerError, serve_sftp_on_stdio};
