//! A guest agent: runs commands and moves files in a virtual machine for its host.
//!
//! The door has five names: [`Config`] (with the [`Flags`] it is read from), [`Agent::bind`],
//! [`Agent::run`], and the errors on the way. `main.rs` and the tests use the same ones.
//!
//! ```text
//! main ─► agent ─► server ─► router ─► api ─┬─► exec          one command and its streams
//!                  listen     reply  ws     ├─► operation     what a client can wait for
//!                  tls                      ├─► events        what a client can hear
//!                                           ├─► sftp          files
//!                                           ├─► port_forward  a TCP port of the guest
//!                                           ├─► state         what the guest is and does
//!                                           └─► host          what the host says of itself
//! agent ─► guest_side ─┬─► instance_data      what the host says of this instance
//!                      ├─► guest_api          programs in the guest ask for it here
//!                      └─► cloud_init         and cloud-init finds it
//! any ─► defaults, shutdown, clock, names, hex. Rooms do not know each other, nor the router,
//! nor HTTP.
//! ```

mod agent;
mod api;
mod app;
mod clock;
mod cloud_init;
mod config;
mod defaults;
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
mod names;
mod notify;
mod operation;
mod port_forward;
mod query;
mod reply;
mod router;
mod server;
mod sftp;
mod shutdown;
mod state;
mod tls;
mod ws;

pub use agent::{Agent, BindError};
pub use config::{
    CloudInit, Config, ConfigError, Flags, GuestConfig, ParseCloudInitError, Security,
};
pub use listen::{ListenAddress, ParseListenError};
pub use notify::notify;
pub use tls::{IdentityError, PemFileError};
