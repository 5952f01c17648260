//! What is measured, and in which ways: names that the table, the chart and the limits share.

pub(super) const TRUE: &str = "`true`, one after another";
pub(super) const FIFTY: &str = "`true`, 50 at once";
pub(super) const GIB_OUT: &str = "1 GiB of output";
pub(super) const GIB_IN: &str = "1 GiB of input";

pub(super) const TOKIO: &str = "tokio::process::Command";
pub(super) const SOCAT: &str = "socat";
pub(super) const PLAIN: &str = "Client, plain";
pub(super) const TLS: &str = "Client, TLS";
