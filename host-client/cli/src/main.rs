//! `agent-cli`: runs commands and moves files in virtual machines, from their host.
//!
//! This file parses the arguments, runs one command and returns its exit code. `args` maps commands to
//! modules: `config` is `instance`, `vm` is `vms`, `shell` is in `exec`, and the file commands are in
//! `files`. All output goes through [`output`].

mod args;
mod config;
mod exec;
mod exit;
mod file_limit;
mod files;
mod identity;
mod info;
mod instance;
mod mux;
mod output;
mod qemu_args;
mod serve;
mod signals;
mod stdio;
mod terminal;
mod vms;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Args, Command},
    config::Settings,
};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return exit::usage(&error),
    };
    // A service logs more by default.
    let is_service = matches!(&args.command, Command::Serve(args) if !args.status);
    output::start_log(args.global.verbose.saturating_add(is_service.into()));
    terminal::restore_on_panic();
    file_limit::raise();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return exit::failure(&error.into()),
    };
    let outcome = runtime.block_on(run(args));
    // Threads that block on a terminal or a pipe are not joined.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => exit::failure(&error),
    }
}

async fn run(args: Args) -> anyhow::Result<u8> {
    let settings = Settings::new(args.global)?;
    let outcome = dispatch(&settings, args.command).await;
    if outcome.is_err() {
        settings.settle().await;
    }
    outcome
}

async fn dispatch(settings: &Settings, command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Exec(args) => exec::run(settings, args).await,
        Command::Shell(args) => exec::shell(settings, args).await,
        Command::Sftp(args) => files::sftp(settings, args).await,
        Command::Push(args) => files::push(settings, args).await,
        Command::Pull(args) => files::pull(settings, args).await,
        Command::Ls(args) => files::ls(settings, args).await,
        Command::Cat(args) => files::cat(settings, args).await,
        Command::Rm(args) => files::rm(settings, args).await,
        Command::Mkdir(args) => files::mkdir(settings, args).await,
        Command::Stat(args) => files::stat(settings, args).await,
        Command::Edit(args) => files::edit(settings, args).await,
        Command::Info(args) => info::run(settings, args).await,
        Command::Identity(command) => identity::run(settings, command),
        Command::Vm(command) => vms::run(settings, command),
        Command::Config(command) => instance::run(settings, command),
        Command::Serve(args) => serve::run(settings, args).await,
        Command::Mux(command) => mux::run(settings, command).await,
        Command::QemuArgs(args) => qemu_args::run(settings, &args),
    }
}
