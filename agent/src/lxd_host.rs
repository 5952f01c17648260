//! Interfaces to LXD's and Incus's hosts beside the HTTP API: the config share, the status port, and the
//! address that the host announces.

pub(crate) mod config_share;
pub(crate) mod host;
pub(crate) mod status_port;
