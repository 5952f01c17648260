//! The program: flags, configuration, logging, and a clean stop.

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use anyhow::Context;
use nix::sys::prctl::set_dumpable;
use tokio::{
    runtime, select,
    signal::unix::{SignalKind, signal},
};
use tracing::Level;

use crate::{
    agent::{Agent, Reloader},
    config::{CommandLine, Config, Flags},
    lxd_host::config_share::fetch_config_share,
    sftp::serve_sftp_on_stdio,
    system::{
        log::{LogLimit, log_to_stderr},
        notify::notify,
    },
};

/// Exit status for an invalid configuration (`EX_USAGE`, `sysexits.h`).
const EXIT_USAGE: u8 = 64;

/// Worker threads of the runtime. Two, so that a busy stream does not delay others; guests have few cores.
const WORKER_THREADS: usize = 2;

/// Runs the program by its arguments, environment and configuration file, and returns its exit status.
/// Errors are printed or logged. Call it once, before another thread is started.
#[must_use]
pub fn run() -> ExitCode {
    let flags = match CommandLine::read() {
        Ok(CommandLine::Serve(flags)) => *flags,
        Ok(CommandLine::Print(text)) => return print(text),
        Ok(CommandLine::Sftp(options)) => {
            return match serve_sftp_on_stdio(options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprint_error(&error.into());
                    ExitCode::FAILURE
                }
            };
        }
        Err(error) => {
            eprint_error(&error.into());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    // The memory contains keys and data of clients: no core dumps, no ptrace.
    if let Err(error) = set_dumpable(false) {
        eprint_error(&anyhow::Error::from(error).context("cannot disable core dumps"));
    }
    if flags.fetches_share() {
        return fetch_share(flags.debugs());
    }
    let ignored = flags.ignored().to_vec();
    let config = match Config::load(flags.clone()) {
        Ok(config) => config,
        Err(error) => {
            eprint_error(&error.into());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let log = log_to_stderr(config.log);
    if !ignored.is_empty() {
        tracing::warn!(?ignored, "unknown arguments are ignored");
    }
    match serve(flags, config, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    match stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fetch_share(debugs: bool) -> ExitCode {
    let _limit = log_to_stderr(if debugs { Level::DEBUG } else { Level::INFO });
    let fetched = runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| Ok(runtime.block_on(fetch_config_share())?));
    match fetched {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            tracing::info!("this host provides no config share");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: Flags, config: Config, log: &LogLimit) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
        let agent = Agent::bind(config.clone()).await?;
        let reloader = agent.reloader();
        let until = async {
            select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = log.report() => {}
                () = async {
                    while hang_up.recv().await.is_some() {
                        reload(&flags, &config, &reloader, log);
                    }
                    std::future::pending().await
                } => {}
            }
            notify("STOPPING=1");
        };
        if !agent.run(|| notify("READY=1"), until).await {
            tracing::warn!("sessions were aborted");
        }
        Ok(())
    })
}

/// Reloads the configuration. `started` is the configuration at the start.
fn reload(flags: &Flags, started: &Config, reloader: &Reloader, log: &LogLimit) {
    let config = match Config::load(flags.clone()) {
        Ok(config) => config,
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!("the configuration is left as it is: {error:#}");
            return;
        }
    };
    if let Err(error) = reloader.reload(&config) {
        let error = anyhow::Error::from(error);
        tracing::error!("the configuration is left as it is: {error:#}");
        return;
    }
    log.set_level(config.log);
    tracing::info!("certificates and configuration are read again");
    let taken = Config {
        security: config.security.clone(),
        allowed_cids: config.allowed_cids.clone(),
        features: config.features.clone(),
        exec_policy: config.exec_policy.clone(),
        log: config.log,
        ..started.clone()
    };
    if taken != config {
        tracing::warn!("some of the changes take effect when the agent is restarted");
    }
}

#[expect(clippy::print_stderr, reason = "errors of a program that cannot start")]
fn eprint_error(error: &anyhow::Error) {
    eprintln!("vsock-agent: {error:#}");
}
