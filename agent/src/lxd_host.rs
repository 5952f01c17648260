//! What LXD's and Incus's hosts hand over outside HTTP: the share with the configuration, and where the
//! host listens.

pub(crate) mod config_share;
pub(crate) mod host;
pub(crate) mod status_port;
