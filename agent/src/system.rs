//! The kernel and the guest's system: accounts, processes, mounts, netlink, blocking work.

pub(crate) mod accounts;
pub(crate) mod blocking;
pub(crate) mod bounded;
pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod mount_table;
pub(crate) mod names;
pub(crate) mod notify;
pub(crate) mod pidfd;
pub(crate) mod proc_stat;
pub(crate) mod reaper;
pub(crate) mod root;
pub(crate) mod state;
