//! Commands: beside the shortest ways to run one, with and without a virtual machine, and whether what
//! is promised of them is kept.

mod chart;
mod client;
mod guest;
mod keyboard;
mod limits;
mod lxd;
mod machine;
mod names;
mod native;
mod program;
pub(crate) mod ssh;
mod table;
mod turns;

use std::{fs, path::PathBuf};

use anyhow::Context;
use harness::vm::{Accelerator, Lab, paths};
use serde_json::{Map, Value, json};

use self::table::{Measure, Place};
use crate::{Options, report::Verdict};

/// What there is to say about figures from this computer.
const HERE: &str = "Without a virtual machine, over Unix sockets.";

/// The same of those from a virtual machine.
const fn in_machine(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "In a virtual machine with KVM.",
        Accelerator::Tcg => {
            "All times are from an emulated virtual machine (TCG): only their ratios mean anything."
        }
    }
}

/// Measures what needs no virtual machine.
pub(crate) async fn without_vm(options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let measures = native::measure(options).await?;
    report(&measures, "native", HERE, options)?;
    limits::check(&measures, Place::Here)
}

/// Measures what needs one.
pub(crate) async fn in_vm(options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let measures = machine::measure(options).await?;
    let about = in_machine(Lab::prepare().await?.machine.accelerator);
    report(&measures, "vm", about, options)?;
    limits::check(&measures, Place::Machine)
}

/// Prints the table. Writes it for programs, and as a picture.
fn report(measures: &[Measure], place: &str, about: &str, options: &Options) -> anyhow::Result<()> {
    if !options.json {
        table::print(measures, about);
    }
    let folder = folder()?;
    let picture = folder.join(format!("exec-{place}.svg"));
    fs::write(&picture, chart::draw(measures, about))
        .with_context(|| picture.display().to_string())?;
    let path = folder.join("exec.json");
    // The other place's is from another run, or from this one.
    let known = fs::read(&path).unwrap_or_default();
    let mut places: Map<String, Value> = serde_json::from_slice(&known).unwrap_or_default();
    places.insert(
        place.to_owned(),
        json!({ "about": about, "measures": measures }),
    );
    let json = serde_json::to_string_pretty(&places)?;
    fs::write(&path, json).with_context(|| path.display().to_string())
}

/// Where the results go.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
