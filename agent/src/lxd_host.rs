//! Interfaces to LXD's and Incus's hosts beside the HTTP API: config share, status port, and the host's
//! address.

pub(crate) mod config_share;
pub(crate) mod host;
pub(crate) mod status_port;
