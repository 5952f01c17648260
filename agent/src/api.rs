//! The API: a route for each path, and one file per resource, which parses the request, calls the module
//! behind it and makes the reply.

mod error;
mod events;
mod exec;
mod metrics;
mod operations;
mod port_forward;
pub(crate) mod router;
mod server_info;
mod sftp;
mod state;
