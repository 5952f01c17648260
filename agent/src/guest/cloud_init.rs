//! Making cloud-init take its data from here: files for it, a second look, and a second boot.
//!
//! Called by `guest_side.rs`. Knows what the data are, not where they come from.

mod boot;
#[cfg(test)]
mod fake;
mod kick;
mod reboot;
mod seed;

pub(crate) use kick::{Datasource, KickError, Outcome, is_boot_over, kick};
pub(crate) use reboot::{in_time, reboot};
pub(crate) use seed::{Seed, is_own_there, remove_own, seeded_meta_data, write};
