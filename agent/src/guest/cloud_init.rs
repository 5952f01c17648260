//! Makes cloud-init take its data from the agent: the seed, a second detection of the datasource, a reboot.
//!
//! Called by `provisioner.rs`. Does not know where the data come from.

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
