//! How much memory the agent and the client need at most.

use std::process::Stdio;

use anyhow::ensure;

use crate::{
    Options, files, peak,
    report::{Target, Verdict},
    rig::{Rig, clear},
    trees,
};

/// Transfers at once: half of them in, half of them out.
const TRANSFERS: usize = 8;

/// Most that the agent may have, in MiB.
const AGENT_TARGET: f64 = 32.0;

/// Most that the client may have, in MiB.
const CLIENT_TARGET: f64 = 64.0;

/// Folders of the large tree, and files in each: a million.
const TREE: (u64, u64) = (100, 10_000);

/// Measures both.
pub(crate) async fn measure(rig: &Rig, options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let mut verdicts = vec![agent(rig, options).await?];
    verdicts.extend(client(rig, options)?);
    Ok(verdicts)
}

async fn agent(rig: &Rig, options: &Options) -> anyhow::Result<Verdict> {
    let from = rig.path("large");
    files::fill(&from, files::BYTES * options.scale / 100)?;
    // An agent that has done nothing else yet.
    let rig = rig.fresh().await;
    let mut running = Vec::new();
    for number in 0..TRANSFERS {
        let to = rig.path(&format!("copy-{number}"));
        let (here, there) = (from.display().to_string(), to.display().to_string());
        let mut cli = match number % 2 {
            0 => rig.cli(&["pull", &rig.remote(&from), &there]),
            _ => rig.cli(&["push", &here, &rig.remote(&to)]),
        };
        running.push((cli.stdin(Stdio::null()).spawn()?, to));
    }
    for (mut cli, to) in running {
        ensure!(cli.wait()?.success(), "a transfer has failed");
        files::same(&from, &to)?;
        clear(&to);
    }
    clear(&from);
    let what = "the agent during 8 transfers of 1 GiB at once";
    Ok(verdict(what, rig.agent.peak_memory(), AGENT_TARGET))
}

fn client(rig: &Rig, options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let (from, to) = (rig.path("tree"), rig.path("tree-copy"));
    let (folders, files) = (TREE.0, TREE.1 * options.scale / 100);
    trees::plant(&from, folders, files, 0)?;
    let (here, there) = (from.display().to_string(), to.display().to_string());
    let mut verdicts = Vec::new();
    for words in [
        ["pull", "-r", &rig.remote(&from), &there],
        ["push", "-r", &here, &rig.remote(&to)],
    ] {
        let bytes = peak::of(&rig.cli(&words))?;
        trees::whole(&to, folders, files)?;
        clear(&to);
        let what = format!("agent-cli {} -r of 1,000,000 files", words[0]);
        verdicts.push(verdict(&what, bytes, CLIENT_TARGET));
    }
    clear(&from);
    Ok(verdicts)
}

fn verdict(what: &str, bytes: u64, most: f64) -> Verdict {
    #[expect(clippy::cast_precision_loss, reason = "a figure for a person")]
    let mebibytes = bytes as f64 / 1024.0 / 1024.0;
    Verdict::new(
        format!("memory of {what}"),
        mebibytes,
        "MiB",
        Target::AtMost(most),
    )
}
