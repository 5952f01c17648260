//! Commands: beside the shortest ways to run one, with and without a virtual machine, and whether what
//! is promised of them is kept.

mod client;
mod limits;
mod names;
mod native;
mod table;
mod turns;

use std::{fs, path::PathBuf};

use anyhow::Context;
use harness::vm::paths;

use self::table::{Measure, Place};
use crate::{Options, report::Verdict};

/// Measures what needs no virtual machine.
pub(crate) async fn without_vm(options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let measures = native::measure(options).await?;
    report(&measures, options)?;
    limits::check(&measures, Place::Here)
}

/// Prints the table, and writes it for programs.
fn report(measures: &[Measure], options: &Options) -> anyhow::Result<()> {
    if !options.json {
        measures.iter().for_each(table::print);
    }
    let json = serde_json::to_string_pretty(measures)?;
    let path = folder()?.join("exec.json");
    fs::write(&path, json).with_context(|| path.display().to_string())
}

/// Where the results go.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
