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

mod agent;
mod api;
mod app;
mod config;
mod defaults;
mod events;
mod exec;
mod guest;
mod hex;
mod http;
mod lxd_host;
mod operation;
mod port_forward;
mod sftp;
mod shutdown;
mod system;
mod toml_file;
mod yaml;

pub use self::guest::presets::{Preset, PresetConfig, PresetError};
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
pub use yaml::YamlError;
