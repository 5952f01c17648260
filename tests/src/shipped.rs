//! The agent as a process of its own, without a VM: for what is counted by the process, such as
//! memory and descriptors, and for what a crash leaves.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixStream, sync::OnceCell};

use crate::{
    Pair, TestFolder, eventually,
    vm::{
        Product, paths,
        process::{Lifetime, Process},
    },
};

/// Time for the agent to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running agent on a Unix socket. Its log is in `target/lab/log/`. `Drop` kills it.
#[derive(Debug)]
pub struct AgentProcess {
    process: Process,
    folder: TestFolder,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
}

impl AgentProcess {
    /// Builds the static binary, once, and starts it without TLS.
    pub async fn start(name: &str) -> Self {
        Self::start_program(&product().await.agent, name, |_| vec!["--plain".to_owned()]).await
    }

    /// The same with TLS: trusts the client, and has the pair `own`.
    pub async fn start_with_tls(name: &str, own: &Pair, client: &Pair) -> Self {
        let identity = |folder: &Path| {
            own.write_agent(folder, &[client]);
            vec!["--identity".to_owned(), folder.display().to_string()]
        };
        Self::start_program(&product().await.agent, name, identity).await
    }

    /// Starts a binary that somebody else built, with the flags that `security` makes for its
    /// folder.
    pub async fn start_program(
        program: &Path,
        name: &str,
        security: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let folder = TestFolder::new(name);
        let log = paths::lab().join("log").join(format!("agent-{name}.log"));
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let listen = format!("unix:{}", folder.path().join("agent.sock").display());
        let mut arguments = ["--end-commands", "--listen", &listen]
            .map(str::to_owned)
            .to_vec();
        arguments.extend(security(folder.path()));
        let agent = Self {
            process: Process::start(program, &arguments, &log, Lifetime::Owned).unwrap(),
            folder,
            program: program.to_owned(),
            arguments,
            log,
        };
        agent.listens().await;
        agent
    }

    async fn listens(&self) {
        let listens = async || UnixStream::connect(self.socket()).await.is_ok();
        assert!(
            eventually(START_TIMEOUT, listens).await,
            "no agent: see {}",
            self.log.display()
        );
    }

    /// Starts it again, after [`kill`](Self::kill).
    pub async fn restart(&mut self) {
        self.process =
            Process::start(&self.program, &self.arguments, &self.log, Lifetime::Owned).unwrap();
        self.listens().await;
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// The endpoint, as the command line writes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Resident memory, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most resident memory it ever had, in bytes.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Open descriptors: how many there are of each kind, such as `socket`.
    #[must_use]
    pub fn descriptors(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(self.proc("fd")).unwrap().flatten() {
            // It may have been closed since.
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        kinds
    }

    /// Child processes, ended ones that nobody has reaped included.
    #[must_use]
    pub fn children(&self) -> usize {
        let threads = fs::read_dir(self.proc("task")).unwrap().flatten();
        let children = threads.filter_map(|thread| {
            // A thread may have ended since.
            fs::read_to_string(thread.path().join("children")).ok()
        });
        children.map(|pids| pids.split_whitespace().count()).sum()
    }

    /// Control groups of commands.
    #[must_use]
    pub fn cgroups(&self) -> usize {
        let own = format!("{}.", self.process.id());
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let groups = mounts
            .iter()
            .flat_map(|mount| fs::read_dir(mount.join("vsock-agent")));
        let groups = groups.flatten().flatten().map(|group| group.path());
        groups
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(&own)
            })
            .map(|path| {
                fs::read_dir(path)
                    .unwrap()
                    .flatten()
                    .filter(|e| e.path().is_dir())
                    .count()
            })
            .sum()
    }

    fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.process.id().to_string())
            .join(name)
    }
}

/// What is shipped, built once.
async fn product() -> &'static Product {
    static PRODUCT: OnceCell<Product> = OnceCell::const_new();
    PRODUCT
        .get_or_init(async || Product::build().await.unwrap())
        .await
}
