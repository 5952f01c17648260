//! Runs commands.
//!
//! `spec` resolves a request into what `fork` needs, `policy` restricts it, `runner` runs it: `child`
//! is the process, `process_tree` and `cgroup` all that it starts, `pump` copies its streams from and to
//! the client, whose ends are `websocket`s or one HTTP/2 `stream`; `control` handles sizes and signals. `background` reads what outlives its command.
//!
//! Called by `api/exec.rs`, which has the request and the sockets. Knows no operation.

mod background;
mod cgroup;
mod child;
mod clone;
mod control;
mod plan;
mod policy;
mod process_tree;
mod pty;
mod pump;
mod runner;
mod spec;
mod stream;
mod websocket;

pub(crate) use policy::CommandPattern;
pub use policy::ExecPolicy;
pub(crate) use runner::{ClientIo, CommandRunner, Ended, Sockets, StopTokens};
pub(crate) use spec::{AgentUser, ExecSpec, SpecError};
pub(crate) use stream::{Requests, StreamEnds};
