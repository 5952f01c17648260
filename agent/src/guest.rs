//! Instance data from the host, and the services that give it to programs in the guest.

pub(crate) mod cloud_init;
pub(crate) mod guest_api;
pub(crate) mod instance_data;
pub(crate) mod metadata;
pub(crate) mod provisioner;
