//! File transfers and commands side by side with OpenSSH's and others', and whether the targets are met:
//! `make bench`.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line that says what it is doing"
)]

mod contest;
mod exec;
mod files;
mod memory;
mod peak;
mod report;
mod rig;
mod trees;
mod vm;

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, bail};
use harness::vm::build_benchmark;

use tokio::sync::OnceCell;

use crate::{report::Verdict, rig::Rig};

const USAGE: &str = "usage: bench [--json] [--runs N] [--scale PERCENT] [PART...]

  files        1 GiB, by OpenSSH's client and by agent-cli
  trees        10,000 files of 4 KiB
  memory       of the agent and of agent-cli
  vm           100 MB into and out of a virtual machine
  exec         commands: both of
  exec-native  those without a virtual machine
  exec-vm      those in one

Without a PART, all of them. Exit status 1 when a target is missed.
A scale other than 100 makes everything smaller, for trying out; it proves nothing.";

/// What is measured, and how.
struct Options {
    json: bool,
    runs: usize,
    /// Size of everything, in percent of what the targets are about.
    scale: u64,
    parts: Vec<String>,
}

impl Options {
    /// A number of runs, scaled: one at least.
    fn scaled(&self, runs: u64) -> anyhow::Result<usize> {
        Ok(usize::try_from((runs * self.scale / 100).max(1))?)
    }

    /// A number of bytes, scaled: whole MiB, and one at least.
    fn scaled_bytes(&self, bytes: u64) -> u64 {
        const MIB: u64 = 1024 * 1024;
        (bytes * self.scale / 100 / MIB).max(1) * MIB
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // The program runs itself to learn what another one needs at most.
    if let Some((peak::WORD, command)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        return peak::report(command);
    }
    // And to connect OpenSSH's client with the virtual machine.
    if let Some((exec::ssh::WORD, words)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        return exec::ssh::connect(words).await;
    }
    match run(arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Vec<String>) -> anyhow::Result<bool> {
    let Some(options) = parse(&arguments)? else {
        return Ok(true);
    };
    if cfg!(debug_assertions) {
        return Err(again(&arguments).await);
    }
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut say = |more: Vec<Verdict>| {
        if !options.json {
            more.iter().for_each(report::print);
        }
        verdicts.extend(more);
    };
    let rig = OnceCell::new();
    let rig = || rig.get_or_try_init(Rig::start);
    for part in &options.parts {
        match part.as_str() {
            "files" => say(files::measure(rig().await?, &options)?),
            "trees" => say(trees::measure(rig().await?, &options)?),
            "memory" => say(memory::measure(rig().await?, &options).await?),
            "vm" => say(vm::measure(rig().await?, &options).await?),
            "exec" => {
                say(exec::without_vm(&options).await?);
                say(exec::in_vm(&options).await?);
            }
            "exec-native" => say(exec::without_vm(&options).await?),
            "exec-vm" => say(exec::in_vm(&options).await?),
            _ => bail!("{part}?\n{USAGE}"),
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdicts)?);
    }
    Ok(verdicts.iter().all(|verdict| verdict.holds))
}

/// Becomes the same program, optimised. Returns only if it cannot.
async fn again(arguments: &[String]) -> anyhow::Error {
    match build_benchmark().await {
        Ok(program) => Command::new(program).args(arguments).exec().into(),
        Err(error) => error.into(),
    }
}

/// `None` when all that was asked for is said.
fn parse(arguments: &[String]) -> anyhow::Result<Option<Options>> {
    let mut options = Options {
        json: false,
        runs: 5,
        scale: 100,
        parts: Vec::new(),
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().context(USAGE)?.parse().context(USAGE);
        match argument.as_str() {
            "--json" => options.json = true,
            "--runs" => options.runs = usize::try_from(number()?)?,
            "--scale" => options.scale = number()?,
            "--help" => {
                println!("{USAGE}");
                return Ok(None);
            }
            word if word.starts_with('-') => bail!(USAGE),
            _ => options.parts.push(argument.clone()),
        }
    }
    if options.parts.is_empty() {
        options.parts = ["files", "trees", "memory", "vm", "exec"]
            .map(str::to_owned)
            .into();
    }
    Ok(Some(options))
}
