//! Files: what the agent needs while many are on their way.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
};

use harness::{AgentProcess, Pair, TestFolder, vm::Product};
use tokio::{process::Command, time::Instant};

/// Transfers at once: half of them in, half of them out.
const TRANSFERS: usize = 8;

/// Bytes of each.
const BYTES: u64 = 1024 * 1024 * 1024;

/// Most that the agent may have, in bytes.
const MAX_MEMORY: u64 = 32 * 1024 * 1024;

/// Copies all at once, by `agent-cli` with these flags. What comes out is not kept.
async fn copy_all(agent: &AgentProcess, flags: &[&str]) {
    let product = Product::build().await.unwrap();
    let folder = TestFolder::in_memory("soak-files");
    let source = folder.path().join("source");
    let mut random = File::open("/dev/urandom").unwrap().take(BYTES);
    io::copy(&mut random, &mut File::create(&source).unwrap()).unwrap();
    let remote = |path: &Path| format!("{}:{}", agent.endpoint(), path.display());
    let begin = Instant::now();
    let mut running = Vec::new();
    for number in 0..TRANSFERS {
        let target = folder.path().join(format!("target-{number}"));
        let mut cli = Command::new(&product.cli);
        cli.args(flags).stdin(Stdio::null()).stdout(Stdio::null());
        match number % 2 {
            0 => cli.args(["push", source.to_str().unwrap(), &remote(&target)]),
            _ => cli.args(["pull", &remote(&source), "-"]),
        };
        running.push(cli.kill_on_drop(true).spawn().unwrap());
    }
    for mut cli in running {
        assert!(cli.wait().await.unwrap().success());
    }
    let seconds = begin.elapsed().as_secs_f64();
    for number in (0..TRANSFERS).step_by(2) {
        let target = folder.path().join(format!("target-{number}"));
        assert_eq!(target.metadata().unwrap().len(), BYTES);
    }
    let peak = agent.peak_memory();
    println!(
        "8 × 1 GiB at once, {flags:?}: {seconds:.1} s, the agent's peak is {} KiB",
        peak / 1024
    );
    assert!(peak < MAX_MEMORY, "{peak} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_gigabytes_at_once() {
    let agent = AgentProcess::start("files").await;
    copy_all(&agent, &["--plain"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_gigabytes_at_once_through_tls() {
    let (own, client) = (Pair::lxd(), Pair::lxd());
    let agent = AgentProcess::start_with_tls("files-tls", &own, &client).await;
    let identity = TestFolder::new("identity");
    for (name, text) in [
        ("agent.crt", &own.certificate),
        ("client.crt", &client.certificate),
        ("client.key", &client.key),
    ] {
        let path = identity.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let identity = identity.path().to_str().unwrap();
    copy_all(&agent, &["--identity", identity]).await;
}
