//! The file transfers side by side with OpenSSH's and others', and whether the targets are met:
//! `make bench`.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command line that says what it is doing"
)]

mod contest;
mod files;
mod memory;
mod peak;
mod report;
mod rig;
mod trees;
mod vm;

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::{report::Verdict, rig::Rig};

const USAGE: &str = "usage: bench [--json] [--runs N] [--scale PERCENT] [PART...]

  files   1 GiB, by OpenSSH's client and by agent-cli
  trees   10,000 files of 4 KiB
  memory  of the agent and of agent-cli
  vm      100 MB into and out of a virtual machine

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

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    // The program runs itself to learn what another one needs at most.
    if let Some((peak::WORD, command)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        return peak::report(command);
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
    let Some(options) = parse(arguments)? else {
        return Ok(true);
    };
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut say = |more: Vec<Verdict>| {
        if !options.json {
            more.iter().for_each(report::print);
        }
        verdicts.extend(more);
    };
    let rig = Rig::start().await?;
    for part in &options.parts {
        match part.as_str() {
            "files" => say(files::measure(&rig, &options)?),
            "trees" => say(trees::measure(&rig, &options)?),
            "memory" => say(memory::measure(&rig, &options).await?),
            "vm" => say(vm::measure(&rig, &options).await?),
            _ => bail!("{part}?\n{USAGE}"),
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdicts)?);
    }
    Ok(verdicts.iter().all(|verdict| verdict.holds))
}

/// `None` when all that was asked for is said.
fn parse(arguments: Vec<String>) -> anyhow::Result<Option<Options>> {
    let mut options = Options {
        json: false,
        runs: 5,
        scale: 100,
        parts: Vec::new(),
    };
    let mut arguments = arguments.into_iter();
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
            _ => options.parts.push(argument),
        }
    }
    if options.parts.is_empty() {
        options.parts = ["files", "trees", "memory", "vm"].map(str::to_owned).into();
    }
    Ok(Some(options))
}
