//! The daemon: flags, configuration, logging, and a clean stop.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::{
    runtime, select,
    signal::unix::{SignalKind, signal},
};
use vsock_agent::{Agent, Config, Flags, notify};

/// Exit status for a configuration that makes no sense (`EX_USAGE`, `sysexits.h`).
const EXIT_USAGE: u8 = 64;

/// Threads that run tasks: one busy stream must not keep the others waiting, and a guest has few
/// cores to give.
const WORKER_THREADS: usize = 2;

/// Threads for blocking work at most.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    let config = match Config::load(Flags::parse()) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.into());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    tracing_subscriber::fmt()
        .with_max_level(config.log)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let agent = Agent::bind(config).await?;
        let asked_to_stop = async {
            select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            notify("STOPPING=1");
        };
        if !agent.run(|| notify("READY=1"), asked_to_stop).await {
            tracing::warn!("sessions were cut off");
        }
        Ok(())
    })
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a program that cannot start"
)]
fn complain(error: &anyhow::Error) {
    eprintln!("vsock-agent: {error:#}");
}
