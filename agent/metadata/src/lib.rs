//! Metadata services of other clouds, for programs in the guest that support no other. Each is a preset:
//! a TOML file with its address and the routes that it serves from the instance data. The crate's
//! README describes the files; those that are built in are in `presets/`.
//!
//! ```text
//! file ─► Preset ─► Service ─► listen ─► loopback   assigns the address
//!                     │                  sk_lookup  redirects connections, so the port stays free
//!                     ├─────► admits ──► peer       the user at the other end: root only
//!                     └─────► answer ──► token, lookup ─► route ─► template, shape ─► scope ─► Instance
//! ```
//!
//! The program that has the services implements [`Instance`], accepts the connections and serves HTTP
//! on them. This crate has no stable API: it is a part of `vsock-agent`, which also uses [`rtnetlink`],
//! [`yaml`] and [`toml_file`].

mod answer;
mod instance;
mod loopback;
mod netlink;
mod network_data;
mod peer;
mod preset;
mod route;
pub mod rtnetlink;
mod scope;
mod service;
mod shape;
mod sk_lookup;
mod template;
mod token;
pub mod toml_file;
mod user_data;
pub mod yaml;

pub use self::{
    instance::Instance,
    loopback::AddressError,
    preset::{Preset, PresetError},
    service::{PresetConfig, Service, ServiceListener},
};
