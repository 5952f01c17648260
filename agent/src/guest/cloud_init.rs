//! Makes cloud-init use the instance data: by a seed, by a second detection of its datasource, or by a
//! reboot.
//!
//! Called by `provisioner.rs`. Independent of the source of the data.

mod boot;
#[cfg(test)]
mod fake;
mod reboot;
mod redetect;
mod seed;

pub(crate) use boot::Datasource;
pub(crate) use reboot::{reboot, record_in_time};
pub(crate) use redetect::{Outcome, RedetectError, is_boot_over, redetect};
pub(crate) use seed::{Seed, has_own_seed, remove_own_seed, seeded_meta_data, write};
