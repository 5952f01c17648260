//! Without a virtual machine: the agent as a process, over a Unix socket.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, ensure};
use harness::{AgentProcess, Pair, TestFolder, eventually};
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    process::{Child, Command},
};
use vsock_agent_client::{Client, Identity, Security};

use super::{
    client::{PIECE_BYTES, crowd, drain, fill, input, nothing, output, sink, source},
    names,
    table::{Measure, Place, Unit},
    turns::{self, Way, timed},
};
use crate::Options;

/// Commands of each way in a turn, one after another: with five turns, the slowest hundredth is ten.
const BATCH: u64 = 200;

/// Commands at once.
const AT_ONCE: usize = 50;

/// How often each of those at once runs.
const EACH: u64 = 10;

/// Bytes of a long stream.
const STREAM_BYTES: u64 = 1024 * 1024 * 1024;

/// Time for socat to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// An agent without TLS and one with, and a client of each.
struct Native {
    plain: Client,
    tls: Client,
    folder: TestFolder,
    _agents: [AgentProcess; 2],
}

/// Measures all of it.
pub(super) async fn measure(options: &Options) -> anyhow::Result<Vec<Measure>> {
    let native = Native::start().await?;
    Ok(vec![
        native.sequence(options).await?,
        native.crowd(options).await?,
        native.output(options).await?,
        native.input(options).await?,
    ])
}

impl Native {
    async fn start() -> anyhow::Result<Self> {
        let (own, host) = (Pair::small(), Pair::small());
        let agents = [
            AgentProcess::start("bench-plain").await,
            AgentProcess::start_with_tls("bench-tls", &own, &host).await,
        ];
        let [plain, tls] = agents.each_ref().map(|agent| agent.endpoint().parse());
        let identity = Identity::from_pem(&host.identity_pem(&own))?;
        Ok(Self {
            plain: Client::new(plain?, Security::Plain),
            tls: Client::new(tls?, Security::Tls(identity)),
            folder: TestFolder::new("bench-exec"),
            _agents: agents,
        })
    }

    /// The ways of ours, in which `work` is done once in a turn or so many times.
    fn ours<F>(&self, batch: usize, work: impl Fn(Client) -> F + Clone + 'static) -> [Way; 2]
    where
        F: Future<Output = anyhow::Result<f64>> + Send + 'static,
    {
        [(names::PLAIN, &self.plain), (names::TLS, &self.tls)].map(|(name, client)| {
            let (client, work) = (client.clone(), work.clone());
            Way::new(name, batch, move || work(client.clone()))
        })
    }

    async fn sequence(&self, options: &Options) -> anyhow::Result<Measure> {
        let batch = options.scaled(BATCH)?;
        let mut ways = vec![Way::new(names::TOKIO, batch, local)];
        ways.extend(self.ours(batch, nothing));
        take(names::TRUE, &ways, options).await
    }

    async fn crowd(&self, options: &Options) -> anyhow::Result<Measure> {
        let each = options.scaled(EACH)?;
        let mut ways = vec![Way::new(names::TOKIO, 1, move || {
            crowd(AT_ONCE, each, local)
        })];
        ways.extend(self.ours(1, move |client| {
            crowd(AT_ONCE, each, move || nothing(client.clone()))
        }));
        take(names::FIFTY, &ways, options).await
    }

    async fn output(&self, options: &Options) -> anyhow::Result<Measure> {
        let bytes = options.scaled_bytes(STREAM_BYTES);
        let socket = self.folder.path().join("out");
        let _socat = socat(&socket, &source(bytes)).await?;
        let mut ways = vec![Way::new(names::SOCAT, 1, move || {
            let socket = socket.clone();
            timed(async move { drain(UnixStream::connect(socket).await?, bytes).await })
        })];
        ways.extend(self.ours(1, move |client| output(client, bytes)));
        take(names::GIB_OUT, &ways, options).await
    }

    async fn input(&self, options: &Options) -> anyhow::Result<Measure> {
        let bytes = options.scaled_bytes(STREAM_BYTES);
        let socket = self.folder.path().join("in");
        let _socat = socat(&socket, &sink()).await?;
        let mut ways = vec![Way::new(names::SOCAT, 1, move || {
            let socket = socket.clone();
            timed(async move {
                let mut stream = UnixStream::connect(socket).await?;
                fill(&mut stream, bytes).await?;
                stream.shutdown().await?;
                // It closes when its command has ended.
                drain(stream, 0).await
            })
        })];
        ways.extend(self.ours(1, move |client| input(client, bytes)));
        take(names::GIB_IN, &ways, options).await
    }
}

async fn take(name: &'static str, ways: &[Way], options: &Options) -> anyhow::Result<Measure> {
    Ok(Measure {
        place: Place::Here,
        name,
        unit: Unit::Seconds,
        ways: turns::take(ways, options.runs).await.context(name)?,
    })
}

/// `true` as a child of this process, with pipes as a client's command has.
async fn local() -> anyhow::Result<f64> {
    timed(async {
        let mut command = Command::new("true");
        let output = command.stdin(Stdio::null()).output().await?;
        ensure!(output.status.success(), "{}", output.status);
        Ok(())
    })
    .await
}

/// socat that starts `words` for each connection to a socket. `Drop` kills it.
async fn socat(socket: &Path, words: &[String]) -> anyhow::Result<Child> {
    let mut socat = Command::new("socat");
    socat
        .args(["-b", &PIECE_BYTES.to_string()])
        .arg(format!("UNIX-LISTEN:{},fork", socket.display()))
        .arg(format!("EXEC:{}", words.join(" ")))
        // It complains of who only looks whether it listens.
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let socat = socat.spawn().context("socat: make setup")?;
    let listens = async || UnixStream::connect(socket).await.is_ok();
    ensure!(
        eventually(START_TIMEOUT, listens).await,
        "socat does not listen"
    );
    Ok(socat)
}
