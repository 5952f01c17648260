//! The virtual machine, and all that runs in it: an agent that starts the others, ours with TLS and
//! plain, another maker's, socat and OpenSSH's server.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use harness::{
    Pair, RawClient, TestFolder, TestVm, eventually,
    vm::{Lab, Product, StockAgent, VmOptions},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    time::{Instant, timeout},
};
use vsock_agent_client::{Client, ExecSession, Identity, Security};

use super::{
    client::{PIECE_BYTES, sink, source},
    names,
    program::Words,
    ssh::{self, Ssh},
};
use crate::vm::flat_identity;

/// The machine's name, on the command line too.
const NAME: &str = "bench";

/// Memory of the machine: the image is unpacked there.
const MEMORY_MIB: u32 = 1024;

/// Where the agent listens that starts the others, and is not measured.
const LAB_PORT: u32 = 9440;

/// Where ours listens with TLS.
const TLS_PORT: u32 = 9443;

/// Where ours listens without.
const PLAIN_PORT: u32 = 9444;

/// Where ours listens when its start is measured.
const START_PORT: u32 = 9445;

/// Where LXD's and Incus's agents listen, and there is no choice.
const STOCK_PORT: u32 = 8443;

/// Where sshd is.
const SSH_PORT: u32 = 9522;

/// Where socat runs `true`.
pub(super) const TRUE_PORT: u32 = 9501;

/// Where socat sends back what comes.
pub(super) const ECHO_PORT: u32 = 9502;

/// Where socat has a terminal.
pub(super) const TERMINAL_PORT: u32 = 9503;

/// Where a short stream comes out.
pub(super) const SHORT_PORT: u32 = 9504;

/// Where a long stream comes out.
pub(super) const OUT_PORT: u32 = 9505;

/// Where a long stream goes in.
pub(super) const IN_PORT: u32 = 9506;

/// Time for a program to listen, in an emulated machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The folder in the guest with the identity of another maker's agent, which is all in one there.
const STOCK_FOLDER: &str = "/run/stock";

/// A program that runs in the guest. `Drop` kills it.
pub(super) struct Running {
    /// From its start until it listened, in seconds.
    pub(super) started: f64,
    /// Resident memory when it listened, in bytes.
    pub(super) memory: f64,
    _session: ExecSession,
}

/// Another maker's agent, and what speaks with it.
pub(super) struct Stock {
    pub(super) kind: StockAgent,
    pub(super) client: Client,
    pub(super) raw: RawClient,
    pub(super) running: Running,
}

/// The machine.
pub(super) struct Guest {
    pub(super) plain: Client,
    pub(super) tls: Client,
    /// Speaks TLS with ours.
    pub(super) raw: RawClient,
    pub(super) ssh: Ssh,
    /// Sizes of the agents, in bytes.
    pub(super) sizes: Vec<(&'static str, u64)>,
    cli: PathBuf,
    /// For `agent-cli`: all in one folder.
    identity: PathBuf,
    security: Security,
    pairs: [Pair; 2],
    lab: Client,
    running: Vec<Running>,
    vm: TestVm,
    // Last, as the others use it.
    _folder: TestFolder,
}

impl Guest {
    /// Boots it and starts what is there all the time. The streams have so many bytes.
    pub(super) async fn start(short: u64, long: u64) -> anyhow::Result<Self> {
        let product = &Lab::prepare().await?.product;
        let folder = TestFolder::new("bench-identity");
        let pairs = [Pair::small(), Pair::small()];
        let [own, host] = &pairs;
        own.write_for_cli(folder.path(), NAME, host);
        let (programs, sizes) = programs(product).await?;
        let options = VmOptions {
            port: LAB_PORT,
            memory_mib: MEMORY_MIB,
            identity: Some(folder.path().to_owned()),
            programs,
            ..VmOptions::new(NAME)
        };
        let vm = TestVm::start(options).await?;
        let security = Security::Tls(Identity::from_pem(&host.identity_pem(own))?);
        let client = |port, security: &Security| {
            let endpoint = vm.endpoint_at(port).parse()?;
            anyhow::Ok(Client::new(endpoint, security.clone()))
        };
        let mut guest = Self {
            plain: client(PLAIN_PORT, &Security::Plain)?,
            tls: client(TLS_PORT, &security)?,
            raw: RawClient::at(&vm.endpoint_at(TLS_PORT)).with_tls(host, own),
            ssh: Ssh::create(vm.scratch().join("ssh"), &vm.endpoint_at(SSH_PORT)).await?,
            sizes,
            identity: flat_identity(&vm)?,
            cli: product.cli.clone(),
            lab: client(LAB_PORT, &security)?,
            security,
            pairs,
            running: Vec::new(),
            vm,
            _folder: folder,
        };
        guest.prepare().await?;
        guest.start_all(short, long).await?;
        guest.ssh.start_master().await?;
        Ok(guest)
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        let folder = ssh::GUEST_FOLDER;
        let script = format!(
            "mkdir -p /run/sshd {folder} && cp -r /etc/vsock-agent {STOCK_FOLDER} && \
             echo sshd:x:100:65534::/run/sshd:/bin/false >> /etc/passwd"
        );
        let prepare = self.lab.exec("sh", ["-c", &script]).output().await?;
        ensure!(prepare.status.success(), "{prepare:?}");
        let files = ssh::GUEST_FILES.map(|file| self.ssh.folder().join(file));
        let mut push = self.vm.cli(["push"]);
        push.args(files).arg(format!("{NAME}:{folder}/"));
        let output = push.output().await?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "push: {words}");
        Ok(())
    }

    async fn start_all(&mut self, short: u64, long: u64) -> anyhow::Result<()> {
        let read_all = format!("iflag=fullblock count={}", long / PIECE_BYTES);
        let programs = [
            (TLS_PORT, ours(TLS_PORT)),
            (PLAIN_PORT, ours(PLAIN_PORT) + " --plain"),
            (TRUE_PORT, socat(TRUE_PORT, "EXEC:true")),
            (ECHO_PORT, socat(ECHO_PORT, "PIPE")),
            (
                TERMINAL_PORT,
                socat(TERMINAL_PORT, "EXEC:cat,pty,setsid,ctty"),
            ),
            (SHORT_PORT, socat(SHORT_PORT, &exec(&source(short)))),
            (OUT_PORT, socat(OUT_PORT, &exec(&source(long)))),
            // It ends by itself: the host's end of a stream is the end of both directions.
            (
                IN_PORT,
                socat(IN_PORT, &format!("EXEC:'{} {read_all}'", sink().join(" "))),
            ),
            (SSH_PORT, socat(SSH_PORT, &ssh_server())),
        ];
        for (port, program) in programs {
            let running = self.launch(&program, port).await?;
            self.running.push(running);
        }
        Ok(())
    }

    /// Starts another maker's agent.
    pub(super) async fn start_stock(&self, kind: StockAgent) -> anyhow::Result<Stock> {
        let program = format!("cd {STOCK_FOLDER} && exec {}", stock_path(kind));
        let running = self.launch(&program, STOCK_PORT).await?;
        let endpoint = self.vm.endpoint_at(STOCK_PORT);
        let [own, host] = &self.pairs;
        Ok(Stock {
            kind,
            client: Client::new(endpoint.parse()?, self.security.clone()),
            raw: RawClient::at(&endpoint).with_tls(host, own),
            running,
        })
    }

    /// Starts one more of ours, and ends it.
    pub(super) async fn start_ours(&self) -> anyhow::Result<Running> {
        self.launch(&ours(START_PORT), START_PORT).await
    }

    /// Waits until nothing listens where an agent was that is gone.
    pub(super) async fn until_ended(&self) -> anyhow::Result<()> {
        for port in [STOCK_PORT, START_PORT] {
            let port = self.port(port);
            let is_gone = async || port.try_connect().await.is_err();
            ensure!(
                eventually(START_TIMEOUT, is_gone).await,
                "an agent does not end"
            );
        }
        Ok(())
    }

    /// Starts a program of the shell, and waits until it listens.
    async fn launch(&self, program: &str, port: u32) -> anyhow::Result<Running> {
        let script = format!("echo $$; read go; {program} >/dev/null 2>&1");
        let exec = self.lab.exec("sh", ["-c", &script]);
        let mut session = exec.kill_pause(Duration::ZERO).start().await?;
        let stdout = session.take_stdout().context("the output")?;
        let mut pid = String::new();
        BufReader::new(stdout).read_line(&mut pid).await?;
        let mut stdin = session.take_stdin().context("the input")?;
        let at = self.port(port);
        let begin = Instant::now();
        stdin.write_all(b"go\n").await?;
        let listens = async { while at.try_connect().await.is_err() {} };
        timeout(START_TIMEOUT, listens)
            .await
            .with_context(|| format!("no {program}"))?;
        Ok(Running {
            started: begin.elapsed().as_secs_f64(),
            memory: self.memory(pid.trim()).await?,
            _session: session,
        })
    }

    async fn memory(&self, pid: &str) -> anyhow::Result<f64> {
        let status = format!("/proc/{pid}/status");
        let output = self.lab.exec("grep", ["VmRSS:", &status]).output().await?;
        let text = String::from_utf8(output.stdout)?;
        let kib = text.split_whitespace().nth(1).context("no memory")?;
        Ok(kib.parse::<f64>()? * 1024.0)
    }

    /// A port of the guest, without TLS.
    pub(super) fn port(&self, port: u32) -> RawClient {
        RawClient::at(&self.vm.endpoint_at(port))
    }

    /// What runs these words in the guest, by name.
    pub(super) fn program(&self, name: &str, words: &[&str]) -> Words {
        let start = match name {
            names::SSH => self.ssh.alone(),
            names::SSH_MASTER => self.ssh.by_master(),
            names::CLI_PLAIN => self.cli(&["exec", "--plain"], PLAIN_PORT),
            _ => {
                let identity = self.identity.display().to_string();
                self.cli(&["--identity", &identity, "exec"], TLS_PORT)
            }
        };
        let words = words.iter().map(|word| (*word).to_owned());
        Words(start.into_iter().chain(words).collect())
    }

    fn cli(&self, options: &[&str], port: u32) -> Vec<String> {
        let (cli, endpoint) = (self.cli.display().to_string(), self.vm.endpoint_at(port));
        let words = [cli.as_str()].into_iter().chain(options.iter().copied());
        words
            .chain([endpoint.as_str(), "--"])
            .map(str::to_owned)
            .collect()
    }
}

/// What is in the image beside the lab's own things, and the sizes of the agents.
async fn programs(
    product: &Product,
) -> anyhow::Result<(Vec<(PathBuf, String)>, Vec<(&'static str, u64)>)> {
    let mut sizes = vec![(names::OUR_AGENT, fs::metadata(&product.agent)?.len())];
    let mut programs = Vec::new();
    for kind in [StockAgent::Lxd, StockAgent::Incus] {
        let program = kind.find().await?;
        sizes.push((stock_name(kind), fs::metadata(&program)?.len()));
        programs.push((program, stock_path(kind).to_owned()));
    }
    let linked = [linked_to("/usr/bin/socat")?, linked_to("/usr/sbin/sshd")?].concat();
    for file in linked.into_iter().collect::<BTreeSet<_>>() {
        programs.push((PathBuf::from(&file), file));
    }
    Ok((programs, sizes))
}

/// A program of this computer, and the libraries that it needs, its loader among them.
fn linked_to(program: &str) -> anyhow::Result<Vec<String>> {
    let output = std::process::Command::new("ldd").arg(program).output()?;
    ensure!(output.status.success(), "no {program}: make setup");
    let words = String::from_utf8(output.stdout)?;
    let libraries = words
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    Ok(libraries.chain([program]).map(str::to_owned).collect())
}

/// What another maker's agent is called in the tables.
pub(super) const fn stock_name(kind: StockAgent) -> &'static str {
    match kind {
        StockAgent::Lxd => names::LXD_AGENT,
        StockAgent::Incus => names::INCUS_AGENT,
    }
}

const fn stock_path(kind: StockAgent) -> &'static str {
    match kind {
        StockAgent::Lxd => "/usr/bin/lxd-agent",
        StockAgent::Incus => "/usr/bin/incus-agent",
    }
}

fn ours(port: u32) -> String {
    format!("exec vsock-agent --listen vsock:any:{port}")
}

/// socat that does this for each connection, of which many may come at once. One ends when its command
/// does, not half a second later.
fn socat(port: u32, what: &str) -> String {
    format!("exec socat -t 0.001 -b {PIECE_BYTES} VSOCK-LISTEN:{port},backlog=128,fork {what}")
}

fn exec(words: &[String]) -> String {
    format!("EXEC:'{}'", words.join(" "))
}

/// sshd gets the connection itself, as from systemd.
fn ssh_server() -> String {
    let config = Path::new(ssh::GUEST_FOLDER).join("sshd_config");
    format!("EXEC:'/usr/sbin/sshd -i -f {}',nofork", config.display())
}
