//! Making cloud-init take its data from here: files for it, and a second look.
//!
//! Called by `guest_side.rs`. Knows what the data are, not where they come from.

mod boot;
#[cfg(test)]
mod fake;
mod kick;
mod seed;

pub(crate) use kick::{Datasource, kick};
pub(crate) use seed::{Seed, write};
