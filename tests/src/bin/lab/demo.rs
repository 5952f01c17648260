//! The demo VM: one per target folder, running until it is told to stop.

mod record;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use harness::vm::{Lab, Lifetime, Product, TestVm, VmOptions, paths};
use tokio::{process::Command, time::timeout};

use self::record::Record;

/// What the VM is called on the command line.
const NAME: &str = "demo";

/// Time for one command of the demo. The longest waits for the agent to start.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Size of the file that goes in and out.
const FILE_BYTES: usize = 1 << 20;

/// Boots the VM unless it is running, and tries it.
pub(crate) async fn up() -> anyhow::Result<()> {
    fs::create_dir_all(folder())?;
    println!("building the static binaries and what a VM stands on");
    let lab = Lab::prepare().await?;
    let cli = install(&lab.product)?;
    let record = match Record::read() {
        Some(record) if record.is_running() => {
            println!("the VM is already running; trying it again");
            record
        }
        stale => {
            if let Some(record) = stale {
                record.end().await?;
            }
            boot(lab).await?
        }
    };
    let add = ["vm", "add", NAME, &record.endpoint, "--identity"];
    run(Command::new(&cli).args(add).arg(identity())).await?;
    try_exec(&cli).await?;
    try_sftp(&cli).await?;
    println!("{}", farewell(&cli));
    Ok(())
}

/// Ends the VM and forgets its name.
pub(crate) async fn down() -> anyhow::Result<()> {
    let Some(record) = Record::read() else {
        println!("no demo VM is running");
        return Ok(());
    };
    record.end().await?;
    run(Command::new(installed_cli()?).args(["vm", "remove", NAME])).await?;
    println!("the demo VM has ended and its name is forgotten");
    Ok(())
}

/// Says whether the VM is running.
pub(crate) fn status() {
    let running = Record::read().is_some_and(|record| record.is_running());
    println!(
        "the demo VM is {}",
        if running { "running" } else { "not running" }
    );
}

fn folder() -> PathBuf {
    paths::target().join("demo")
}

fn identity() -> PathBuf {
    folder().join("identity")
}

async fn boot(lab: &Lab) -> anyhow::Result<Record> {
    println!("booting a VM on {}", lab.machine.describe());
    let options = VmOptions {
        logs: folder(),
        identity: Some(identity()),
        lifetime: Lifetime::Detached,
        ..VmOptions::new(NAME)
    };
    let mut vm = TestVm::prepare(options).await?;
    let booted = vm.boot().await;
    // Even if it did not boot: what has started has to be ended.
    let record = Record::write(&vm)?;
    match booted {
        Ok(()) => Ok(record),
        Err(error) => {
            record.end().await?;
            Err(error.into())
        }
    }
}

async fn try_exec(cli: &Path) -> anyhow::Result<()> {
    println!("agent-cli exec {NAME} -- uname -a");
    let uname = run(Command::new(cli).args(["exec", NAME, "--", "uname", "-a"])).await?;
    println!("  {}", uname.trim());
    ensure!(uname.starts_with("Linux demo "), "that is not the demo VM");
    Ok(())
}

/// Copies a file in and out and compares it.
async fn try_sftp(cli: &Path) -> anyhow::Result<()> {
    let (there, back) = (folder().join("there"), folder().join("back"));
    let content: Vec<u8> = (0..FILE_BYTES)
        .map(|at| (at * at / 7).to_le_bytes()[0])
        .collect();
    fs::write(&there, &content)?;
    println!("a file of {FILE_BYTES} bytes by SFTP, in and out");
    let inside = format!("{NAME}:/tmp/there");
    run(Command::new(cli).arg("push").arg(&there).arg(&inside)).await?;
    run(Command::new(cli).arg("pull").arg(&inside).arg(&back)).await?;
    ensure!(
        fs::read(&back)? == content,
        "the file has changed on its way"
    );
    println!("  identical");
    fs::remove_file(there)?;
    fs::remove_file(back)?;
    Ok(())
}

/// Puts the command line where Cargo puts programs, so that it is there in every shell.
fn install(product: &Product) -> anyhow::Result<PathBuf> {
    let to = installed_cli()?;
    let folder = to.parent().context("a folder for programs")?;
    fs::create_dir_all(folder)?;
    // In two steps, as the old one may be running.
    let new = to.with_extension("new");
    fs::copy(&product.cli, &new)
        .and_then(|_| fs::rename(&new, &to))
        .with_context(|| format!("installing {}", to.display()))?;
    Ok(to)
}

fn installed_cli() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    Ok(cargo
        .context("neither CARGO_HOME nor HOME is set")?
        .join("bin/agent-cli"))
}

fn farewell(cli: &Path) -> String {
    let is_found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| Some(&*folder) == cli.parent()));
    let note = match cli.parent() {
        Some(folder) if !is_found => format!("\n  (add {} to PATH first)", folder.display()),
        _ => String::new(),
    };
    format!(
        "
The VM is running and agent-cli knows it as `{NAME}`. Try:{note}
  agent-cli shell {NAME}
  agent-cli exec {NAME} -- ps
  sftp -D \"agent-cli sftp --stdio {NAME}\"
Its console is in {}/. End it with `make demo-stop`.",
        folder().display()
    )
}

/// Runs a command, which must succeed in time, and gives its output.
async fn run(command: &mut Command) -> anyhow::Result<String> {
    let line = format!("{:?}", command.as_std());
    let output = command.kill_on_drop(true).stdin(Stdio::null()).output();
    let output = timeout(COMMAND_TIMEOUT, output)
        .await
        .with_context(|| format!("{line} took more than {} s", COMMAND_TIMEOUT.as_secs()))?
        .with_context(|| format!("starting {line}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{line}: {}: {}",
        output.status,
        words.trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}
