//! A guest agent: runs commands and moves files in a virtual machine for its host.
//!
//! The door: [`CommandLine`] and [`Config`] (with the [`Flags`] it is read from), [`Agent::bind`], [`Agent::run`],
//! [`serve_sftp_on_stdio`], and the errors on the way; beside it [`fetch_config_share`]. `main.rs`
//! and the tests use the same ones.
//!
//! ```text
//! main ─► agent ─► server ─► router ─► api ─┬─► exec          one command and its streams
//!         │        listen     reply  ws     ├─► operation     what a client can wait for
//!         │        tls                      ├─► events        what a client can hear
//!         │                                 ├─► sftp          files
//!         ├─► config_share                  ├─► port_forward  a TCP port of the guest
//!         │   what LXD's hosts hand over    ├─► state         what the guest is and does
//!         └─► status_port                   └─► host          what the host says of itself
//!             what they read before they connect
//! agent ─► guest_side ─┬─► instance_data      what the host says of this instance
//!                      ├─► guest_api          programs in the guest ask for it here
//!                      ├─► presets            or here, if they know other clouds only
//!                      └─► cloud_init         and cloud-init finds it
//! any ─► defaults, shutdown, admission, blocking, bounded, clock, mount_table, root, names, accounts, hex, netlink, rtnetlink,
//! yaml, toml_file, descriptors, reaper. Rooms do not know each other, nor the router, nor HTTP.
//! ```

mod accounts;
mod agent;
mod api;
mod app;
mod blocking;
mod bounded;
mod client;
mod clock;
mod cloud_init;
mod config;
mod config_share;
mod defaults;
mod descriptors;
mod event_stream;
mod events;
mod exec;
mod guest_api;
mod guest_side;
mod hex;
mod host;
mod http_connection;
mod instance_data;
mod listen;
mod log;
mod memory;
mod mount_table;
mod names;
mod netlink;
mod notify;
mod operation;
mod port_forward;
mod presets;
mod query;
mod reaper;
mod reply;
mod root;
mod router;
mod rtnetlink;
mod server;
mod sftp;
mod shutdown;
mod state;
mod status_port;
mod tls;
mod toml_file;
mod ws;
mod yaml;

pub use agent::{Agent, BindError, Reloader};
pub use config::{
    CloudInit, CommandLine, Config, ConfigError, Feature, Features, FeaturesError, Flags,
    GuestConfig, ParseCloudInitError, Security,
};
pub use config_share::{ConfigShare, FetchError, fetch_config_share};
pub use exec::{CommandPattern, ExecPolicy, ParsePatternError};
pub use listen::{ListenAddress, ParseListenError};
pub use log::{LogLimit, log_to_stderr};
pub use notify::notify;
pub use presets::{Preset, PresetConfig, PresetError};
pub use sftp::{SftpServerError, serve_sftp_on_stdio};
pub use tls::{IdentityError, PemFileError};
pub use yaml::YamlError;
