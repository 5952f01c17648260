//! The real agent in this process, and the API from outside: what needs two ends and no machine.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

mod bad_input;
mod cli_copy;
mod cli_exec;
#[path = "cli_exec.rs"]
#[allow(
    clippy::duplicate_mod,
    reason = "the same tests, by the process of agent-cli mux"
)]
mod cli_exec_by_mux;
mod cli_files;
mod cli_mux;
mod client;
mod connection_flood;
mod contract;
mod copy_broken;
mod copy_dropped;
mod copy_sources;
mod copy_targets;
mod copy_tree;
mod events;
mod exec;
mod exec_start;
mod exec_stream;
mod fuzz;
mod guest_api;
mod hang_up;
mod host_and_guest;
mod hostile_agent;
mod hostile_folder;
mod hostile_guest;
mod hostile_stream;
mod hung_folder;
mod library;
mod library_stream;
mod metrics;
mod operations;
mod port_forward;
mod presets;
mod process;
mod readme;
mod routing;
mod serve;
mod server_info;
mod sftp;
mod shutdown;
mod state;
mod tls;
mod wire;
