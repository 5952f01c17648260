//! One file per resource: parse the request, call the module behind it, make the reply.

mod error;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod metrics;
pub(crate) mod operations;
pub(crate) mod port_forward;
pub(crate) mod server_info;
pub(crate) mod sftp;
pub(crate) mod state;
