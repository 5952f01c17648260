//! Instance data of virtual machines, and the process that gives it to the agents in them.
//!
//! [`instance`] is the data: files of the host, changed by key, checked before they are written.
//! [`HostProcess`] answers guests that ask for theirs, and monitors their agents.

mod host;
pub mod instance;

pub use self::host::{
    AgentReport, Guest, GuestReport, GuestTls, GuestTlsError, HostConfig, HostProcess,
    IsRegistered, StatusReport,
};
