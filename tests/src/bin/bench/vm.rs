//! A file into and out of a virtual machine: through TLS beside LXD's agent, plain beside a stream
//! that is nothing but bytes.
//!
//! The agents are in the same machine, and driven by the same client, OpenSSH's, with as much in
//! flight. The plain stream is dd's, on a socket that it has from socat; the guest gets both with
//! all that they are linked to.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, ensure};
use harness::{
    RawClient, TestVm,
    vm::{StockAgent, VmOptions},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::Instant,
};

use crate::{
    Options,
    contest::{self, Times, Way},
    files::{fill, same},
    report::{Target, Verdict},
    rig::{Rig, clear, sftp},
};

/// Size of the file, in bytes.
const BYTES: u64 = 100_000_000;

/// Least rate of ours through TLS, by that of LXD's agent.
const TLS_TARGET: f64 = 1.5;

/// Least rate of ours without TLS, by that of the stream.
const PLAIN_TARGET: f64 = 0.7;

/// Where LXD's agent listens, and there is no choice.
const STOCK_PORT: u32 = 8443;

/// Where ours listens with TLS.
const OUR_PORT: u32 = 9443;

/// Where ours listens without.
const PLAIN_PORT: u32 = 9444;

/// Where the stream goes in.
const PUT_PORT: u32 = 9501;

/// Where the stream comes out.
const GET_PORT: u32 = 9502;

/// What the client asks for at once, and how often before an answer: what LXD's own client does.
const IN_FLIGHT: [&str; 4] = ["-B", "32768", "-R", "64"];

/// A machine with everything that is compared.
struct Guest {
    vm: TestVm,
    identity: PathBuf,
    bytes: u64,
    /// The programs in it.
    _running: Vec<Child>,
}

/// Measures put and get, both ways.
pub(crate) async fn measure(rig: &Rig, options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let guest = Guest::start(BYTES * options.scale / 100).await?;
    let from = rig.path("vm-file");
    fill(&from, guest.bytes)?;
    let mut verdicts = guest.against_stock(rig, &from, options)?;
    verdicts.extend(guest.against_stream(rig, &from, options).await?);
    Ok(verdicts)
}

impl Guest {
    async fn start(bytes: u64) -> anyhow::Result<Self> {
        let options = VmOptions {
            port: OUR_PORT,
            memory_mib: 2048,
            ..VmOptions::new("bench")
        };
        let vm = TestVm::start(options).await?;
        let identity = flat_identity(&vm)?;
        push(&vm, &StockAgent::Lxd.find().await?, "/run/stock-agent").await?;
        let files = [linked_to("socat")?, linked_to("dd")?].concat();
        for file in files.into_iter().collect::<BTreeSet<_>>() {
            let name = file
                .file_name()
                .context("a name")?
                .to_string_lossy()
                .into_owned();
            push(&vm, &file, &format!("/run/tool-{name}")).await?;
        }
        let prepare = "chmod 755 /run/stock-agent /run/tool-*; mkdir /run/tools; \
                       for file in /run/tool-*; do mv $file /run/tools/${file#/run/tool-}; done; \
                       cp -r /etc/vsock-agent /run/stock";
        in_guest(&vm, prepare).await?;
        let tool = |name| {
            format!("/run/tools/ld-linux-x86-64.so.2 --library-path /run/tools /run/tools/{name}")
        };
        let stream = |port, words| {
            let (socat, dd) = (tool("socat"), tool("dd"));
            let count = format!("bs=262144 count={bytes} iflag=count_bytes iflag=fullblock");
            // Without a fork the socket itself is what dd reads and writes.
            format!("exec {socat} VSOCK-LISTEN:{port},fork EXEC:'{dd} {words} {count}',nofork")
        };
        let scripts = [
            "cd /run/stock && exec /run/stock-agent".to_owned(),
            format!("exec vsock-agent --plain --listen vsock:any:{PLAIN_PORT}"),
            stream(PUT_PORT, "of=/dev/null"),
            stream(GET_PORT, "if=/dev/zero"),
        ];
        let running = scripts.iter().map(|script| {
            let mut exec = vm.exec(["sh", "-c", script]);
            exec.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        });
        let running = running.collect::<Result<_, _>>()?;
        Ok(Self {
            vm,
            identity,
            bytes,
            _running: running,
        })
    }

    /// The words that speak SFTP with an agent in the guest, and the file of the client's batch.
    fn client(&self, rig: &Rig, words: &str, batch: &str) -> std::process::Command {
        let bridge = format!("{} sftp --stdio {words}", rig.product.cli.display());
        let file = rig.path("vm-batch");
        let mut client = sftp(&file, &bridge, batch);
        client
            .args(IN_FLIGHT)
            .env("AGENT_CLI_CONFIG", self.vm.config());
        client
    }

    fn against_stock(
        &self,
        rig: &Rig,
        from: &Path,
        options: &Options,
    ) -> anyhow::Result<Vec<Verdict>> {
        let stock = format!(
            "--identity {} {}",
            self.identity.display(),
            self.vm.endpoint_at(STOCK_PORT)
        );
        let (here, back) = (from.display(), rig.path("vm-back"));
        let mut verdicts = Vec::new();
        for (verb, batch) in [
            ("put", format!("put {here} /tmp/file\n")),
            ("get", format!("get /tmp/file {}\n", back.display())),
        ] {
            let ways = vec![
                Way::new("lxd-agent, TLS", self.client(rig, &stock, &batch)),
                Way::new("vsock-agent, TLS", self.client(rig, self.vm.name(), &batch)),
            ];
            let check = || match verb {
                "get" => same(from, &back),
                _ => Ok(()),
            };
            let times = contest::run(
                ways,
                options.runs,
                || Ok(rig.make_room(&back, BYTES)?),
                check,
            )?;
            let what = format!("{verb} of 100 MB through TLS in a VM");
            verdicts.push(rate(what, "of lxd-agent's rate", TLS_TARGET, times)?);
        }
        Ok(verdicts)
    }

    async fn against_stream(
        &self,
        rig: &Rig,
        from: &Path,
        options: &Options,
    ) -> anyhow::Result<Vec<Verdict>> {
        let remote = format!("{}:/tmp/plain", self.vm.endpoint_at(PLAIN_PORT));
        let (here, back) = (from.display().to_string(), rig.path("vm-back"));
        let there = back.display().to_string();
        let mut verdicts = Vec::new();
        for (verb, words, port) in [
            ("put", ["push", &here, &remote], PUT_PORT),
            ("get", ["pull", &remote, &there], GET_PORT),
        ] {
            let (mut streamed, mut copied) = (Vec::new(), Vec::new());
            for _ in 0..options.runs {
                clear(&back);
                streamed.push(self.stream(port).await?);
                let ways = vec![Way::new("agent-cli + vsock-agent, plain", rig.cli(&words))];
                let times = contest::run(ways, 1, || Ok(()), || Ok(()))?;
                copied.extend(times.into_iter().flat_map(|times| times.runs));
            }
            let times = vec![
                Times::of("stream of bytes", streamed),
                Times::of("agent-cli + vsock-agent, plain", copied),
            ];
            let what = format!("{verb} of 100 MB, plain, in a VM");
            verdicts.push(rate(what, "of the stream's rate", PLAIN_TARGET, times)?);
        }
        same(from, &back)?;
        Ok(verdicts)
    }

    /// So many bytes in or out, in seconds.
    async fn stream(&self, port: u32) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let mut stream = RawClient::at(&self.vm.endpoint_at(port)).connect().await;
        let mut buffer = vec![0; 256 * 1024];
        let mut left = usize::try_from(self.bytes)?;
        while left > 0 {
            let piece = left.min(buffer.len());
            left -= match port {
                PUT_PORT => stream.write(&buffer[..piece]).await?,
                _ => stream.read(&mut buffer[..piece]).await?,
            };
        }
        if port == PUT_PORT {
            // The guest closes it when all has come.
            ensure!(
                stream.read(&mut buffer).await? == 0,
                "the stream says something"
            );
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// The rate of the second by that of the first.
fn rate(
    what: String,
    unit: &'static str,
    least: f64,
    times: Vec<Times>,
) -> anyhow::Result<Verdict> {
    let [theirs, ours] = &times[..] else {
        anyhow::bail!("two ways")
    };
    let figure = theirs.median / ours.median;
    let mut verdict = Verdict::new(what, figure, unit, Target::AtLeast(least));
    verdict.times = times;
    Ok(verdict)
}

/// The identity as a client of LXD's agent has it: all in one folder.
pub(crate) fn flat_identity(vm: &TestVm) -> anyhow::Result<PathBuf> {
    let from = vm.identity().context("an identity")?;
    let to = vm.scratch().join("flat");
    fs::create_dir(&to)?;
    fs::copy(from.join("client.crt"), to.join("client.crt"))?;
    fs::copy(from.join("client.key"), to.join("client.key"))?;
    fs::copy(from.join(vm.name()).join("agent.crt"), to.join("agent.crt"))?;
    Ok(to)
}

/// A program of this computer, and the libraries that it needs, its loader among them.
fn linked_to(program: &str) -> anyhow::Result<Vec<PathBuf>> {
    let path = PathBuf::from("/usr/bin").join(program);
    let output = std::process::Command::new("ldd").arg(&path).output()?;
    ensure!(output.status.success(), "no {program}: make setup");
    let words = String::from_utf8(output.stdout)?;
    let libraries = words
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(libraries.map(PathBuf::from).chain([path]).collect())
}

async fn push(vm: &TestVm, from: &Path, to: &str) -> anyhow::Result<()> {
    let from = from.display().to_string();
    let to = format!("{}:{to}", vm.name());
    succeed(vm.cli(["push", "--no-fsync", &from, &to])).await
}

async fn in_guest(vm: &TestVm, script: &str) -> anyhow::Result<()> {
    succeed(vm.exec(["sh", "-c", script])).await
}

async fn succeed(mut command: Command) -> anyhow::Result<()> {
    let output = command.output().await?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {words}");
    Ok(())
}
