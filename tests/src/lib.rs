//! The harness: what a test needs to have both ends at once.
//!
//! [`vm`] boots a real virtual machine with the agent in it as a service.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

pub mod agent;
mod base64;
pub mod cloud_init;
pub mod eventually;
pub mod fuzz;
pub mod hanging;
pub mod host;
pub mod hostile_agent;
pub mod http2;
mod hyper_server;
pub mod identity;
pub mod kinds;
mod nobody;
mod own_process;
mod pinned;
pub mod ports;
pub mod random;
pub mod raw;
pub mod shipped;
pub mod stock_server;
pub mod upgrade;
pub mod vm;

pub use agent::{TestAgent, TestFolder};
pub use base64::base64;
pub use eventually::eventually;
pub use hanging::{HangingFolder, in_own_mounts};
pub use host::{HostAddress, HostData, MockHost};
pub use hyper_server::hyper_server;
pub use identity::Pair;
pub use nobody::as_nobody;
pub use pinned::client_hello;
pub use ports::free_port;
pub use random::Random;
pub use raw::{RawClient, RawExec, RawReply};
pub use shipped::AgentProcess;
pub use stock_server::StockServer;
pub use vm::TestVm;
