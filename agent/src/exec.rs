//! One command and its streams.
//!
//! Called by `api/exec.rs`, which has the request and the sockets. Owns the process from `fork` to
//! the last signal. Knows neither HTTP nor the registry.

mod cgroup;
mod child;
mod control;
mod family;
mod leftovers;
mod policy;
mod pty;
mod pump;
mod session;
mod spec;

pub use policy::{CommandPattern, ExecPolicy, ParsePatternError};
pub(crate) use session::{Ended, Session, Sockets, Stops};
pub(crate) use spec::{AgentUser, ExecSpec, SpecError};
