//! Instance data from the host, and the services that provide them in the guest.

pub(crate) mod cloud_init;
pub(crate) mod guest_api;
pub(crate) mod instance_data;
pub(crate) mod metadata;
pub(crate) mod provisioner;
