//! What is measured, and in which ways: names that the table, the chart and the limits share.

pub(super) const TRUE: &str = "`true`, one after another";
pub(super) const FIFTY: &str = "`true`, 50 at once";
pub(super) const HUNDRED: &str = "`true`, 100 at once";
pub(super) const GIB_OUT: &str = "1 GiB of output";
pub(super) const GIB_IN: &str = "1 GiB of input";
pub(super) const SHORT_OUT: &str = "1 MiB of output";
pub(super) const LONG_OUT: &str = "64 MiB of output";
pub(super) const LONG_IN: &str = "64 MiB of input";
pub(super) const KEY: &str = "a key's echo by a terminal";
pub(super) const MEMORY: &str = "resident memory of the idle agent";
pub(super) const SIZE: &str = "size of the program";
pub(super) const START: &str = "from its start until the agent listens";

pub(super) const TOKIO: &str = "tokio::process::Command";
/// Without a terminal: connect, fork, exec.
pub(super) const SOCAT: &str = "socat";
/// A stream that is sent back by socat, without a terminal.
pub(super) const STREAM: &str = "socat, no terminal";
pub(super) const PLAIN: &str = "Client, plain";
pub(super) const TLS: &str = "Client, TLS";
pub(super) const CLI_PLAIN: &str = "agent-cli exec, plain";
pub(super) const CLI_TLS: &str = "agent-cli exec, TLS";
pub(super) const LXD_ON_OURS: &str = "LXD's requests, vsock-agent, TLS";
pub(super) const LXD_ON_LXD: &str = "LXD's requests, lxd-agent 5.0.2, TLS";
pub(super) const FEW_LXD_ON_OURS: &str = "LXD's requests, 20 at once, vsock-agent, TLS";
pub(super) const FEW_LXD_ON_LXD: &str = "LXD's requests, 20 at once, lxd-agent 5.0.2, TLS";
pub(super) const CLIENT_ON_LXD: &str = "Client, lxd-agent 5.0.2, TLS";
pub(super) const CLIENT_ON_INCUS: &str = "Client, incus-agent 6.0.4, TLS";
pub(super) const SSH: &str = "ssh";
pub(super) const SSH_MASTER: &str = "ssh, ControlMaster";
pub(super) const OUR_AGENT: &str = "vsock-agent";
pub(super) const LXD_AGENT: &str = "lxd-agent 5.0.2";
pub(super) const INCUS_AGENT: &str = "incus-agent 6.0.4";

/// Whether this is a way of ours.
pub(super) fn is_ours(way: &str) -> bool {
    [
        PLAIN,
        TLS,
        CLI_PLAIN,
        CLI_TLS,
        LXD_ON_OURS,
        FEW_LXD_ON_OURS,
        OUR_AGENT,
    ]
    .contains(&way)
}
