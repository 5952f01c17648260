//! What the host says of this instance, and how programs in the guest hear of it.

pub(crate) mod cloud_init;
pub(crate) mod guest_api;
pub(crate) mod instance_data;
pub(crate) mod presets;
pub(crate) mod provisioner;
