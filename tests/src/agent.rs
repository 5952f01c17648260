//! The real agent, in this process, on a Unix socket in a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use vsock_agent::{
    Agent, CloudInit, Config, ConfigShare, ExecPolicy, Features, GuestConfig, ListenAddress,
    Security,
};
use vsock_agent_metadata::PresetConfig;
use vsock_agent_protocol::{address::Cid, version::Family};

/// An agent that listens. `Drop` stops it as SIGTERM would, and removes its folder.
#[derive(Debug)]
pub struct TestAgent {
    folder: TestFolder,
    is_ready: Option<oneshot::Receiver<()>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TestAgent {
    /// Starts an agent without TLS.
    #[must_use]
    pub fn start() -> Self {
        Self::configured(|_| {})
    }

    /// Starts an agent with the security that `security` makes in the agent's folder.
    #[must_use]
    pub fn start_with(security: impl FnOnce(&Path) -> Security) -> Self {
        let folder = TestFolder::new("agent");
        let security = security(folder.path());
        Self::start_in(folder, |config| config.security = security)
    }

    /// Starts an agent without TLS, and with what `change` does to its configuration.
    #[must_use]
    pub fn configured(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(TestFolder::new("agent"), change)
    }

    fn start_in(folder: TestFolder, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: vec![ListenAddress::Unix(folder.path().join("agent.sock"))],
            security: Security::Plain,
            allowed_cids: vec![Cid::HOST],
            end_commands: true,
            family: Family::Lxd,
            features: Features::all(),
            exec_policy: ExecPolicy::default(),
            guest: GuestConfig {
                host: None,
                default_host: None,
                sockets: vec![folder.path().join("guest.sock")],
                cloud_init: CloudInit::Lxd,
                cloud_init_reboot: false,
                ready_timeout: None,
                presets: PresetConfig::default(),
            },
            log: "warn".parse().unwrap(),
            // Whatever a host asks for happens in the folder, if at all.
            root: folder.path().join("root"),
            share: Some(ConfigShare::new(folder.path().join("share"))),
            status_ports: Vec::new(),
        };
        change(&mut config);
        let (stop, stopped) = oneshot::channel();
        let (bound, is_bound) = mpsc::channel();
        let (ready, is_ready) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                // Rust's own `main` ignores SIGPIPE; a fuzzer's does not. A handler stays for ever.
                drop(signal(SignalKind::pipe()).unwrap());
                let agent = Agent::bind(config).await.unwrap();
                bound.send(()).unwrap();
                let ready = move || ready.send(()).unwrap_or_default();
                agent.run(ready, async { drop(stopped.await) }).await;
            });
        });
        is_bound.recv().expect("the agent cannot bind");
        Self {
            folder,
            is_ready: Some(is_ready),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// The socket for programs in the guest.
    #[must_use]
    pub fn guest_socket(&self) -> PathBuf {
        self.folder.path().join("guest.sock")
    }

    /// Waits until the agent says that the guest may go on.
    pub async fn ready(&mut self) {
        let is_ready = self.is_ready.take().expect("only once");
        is_ready.await.expect("the agent ended");
    }

    /// Waits until the agent says that the guest may go on, on a thread without a runtime.
    pub fn wait_until_ready(&mut self) {
        let is_ready = self.is_ready.take().expect("only once");
        is_ready.blocking_recv().expect("the agent ended");
    }

    /// The endpoint, as the command line writes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// A folder that goes when the agent does.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops the agent, as `Drop` does, and waits for that.
    pub fn stop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the agent panicked");
        }
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A new empty folder, removed in `Drop`.
#[derive(Debug)]
pub struct TestFolder(PathBuf);

impl TestFolder {
    /// Makes one whose name tells what for.
    #[must_use]
    pub fn new(what: &str) -> Self {
        Self::new_in(&std::env::temp_dir(), what)
    }

    /// The same on a file system in memory, if there is one.
    #[must_use]
    pub fn in_memory(what: &str) -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            Self::new_in(memory, what)
        } else {
            Self::new(what)
        }
    }

    fn new_in(parent: &Path, what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{what}-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
