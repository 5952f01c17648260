//! Instance data of virtual machines, and the process that serves it to their agents.
//!
//! [`instance`] is the data: files on the host, changed by key and checked before they are written.
//! [`HostProcess`] serves each guest its own data, and monitors the agents.

mod host;
pub mod instance;

pub use self::host::{
    AgentReport, Guest, GuestReport, GuestTls, HostConfig, HostProcess, IsRegistered, StatusReport,
};
