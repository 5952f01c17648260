//! What is measured with a program that runs a command elsewhere, such as `agent-cli exec` or `ssh`.

use std::process::Stdio;

use anyhow::{Context, ensure};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use super::{
    client::{drain, fill},
    turns::timed,
};

/// A program and its arguments.
#[derive(Clone)]
pub(super) struct Words(pub(super) Vec<String>);

impl Words {
    /// The command. It ends with its drop.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]).kill_on_drop(true);
        command
    }
}

/// From nothing to its exit status.
pub(super) async fn nothing(words: Words) -> anyhow::Result<f64> {
    let mut command = words.command();
    timed(async {
        let output = command.stdin(Stdio::null()).output().await?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {words}");
        Ok(())
    })
    .await
}

/// So many bytes of its output.
pub(super) async fn output(words: Words, bytes: u64) -> anyhow::Result<f64> {
    let mut command = words.command();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    timed(async {
        let mut child = command.spawn()?;
        drain(child.stdout.take().context("the output")?, bytes).await?;
        ended(child).await
    })
    .await
}

/// So many bytes of its input.
pub(super) async fn input(words: Words, bytes: u64) -> anyhow::Result<f64> {
    let mut command = words.command();
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    timed(async {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("the input")?;
        fill(&mut stdin, bytes).await?;
        stdin.shutdown().await?;
        drop(stdin);
        ended(child).await
    })
    .await
}

async fn ended(mut child: Child) -> anyhow::Result<()> {
    let status = child.wait().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}
