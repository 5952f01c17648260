//! The VM lab by hand: what `make` calls.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line that says what it is doing"
)]

mod demo;

use std::process::ExitCode;

use anyhow::bail;
use harness::vm::{Lab, Product, tools};

const USAGE: &str = "usage: lab COMMAND

  setup   prepare all that a VM stands on: kernel, vsock device, static binaries
  build   build the static binaries, and say where they are
  up      boot the demo VM, register it with agent-cli, try it, and leave it running
  down    end the demo VM and forget its name
  status  say whether the demo VM is running, and what VMs stand on here
  deny    check the dependencies: bans, licences, sources";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let command = std::env::args().nth(1);
    match command.as_deref() {
        Some("setup") => setup().await,
        Some("build") => build().await,
        Some("up") => demo::up().await,
        Some("down") => demo::down().await,
        Some("status") => {
            demo::status();
            setup().await
        }
        Some("deny") => Ok(tools::deny().await?),
        _ => bail!(USAGE),
    }
}

async fn build() -> anyhow::Result<()> {
    let product = Product::build().await?;
    println!("{}\n{}", product.agent.display(), product.cli.display());
    Ok(())
}

async fn setup() -> anyhow::Result<()> {
    let lab = Lab::prepare().await?;
    println!("VMs here run on {}", lab.machine.describe());
    Ok(())
}
