//! A guest agent in the process of a test, for programs that use `vsock-agent-client`. It needs no virtual
//! machine, no root and no network.
//!
//! ```
//! use vsock_agent_testing::TestAgent;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = TestAgent::start()?;
//! let output = agent.client().exec("echo", ["hello"]).output().await?;
//! assert_eq!(output.stdout, b"hello\n");
//!
//! let file = agent.folder().join("notes.txt");
//! std::fs::write(&file, "text")?;
//! let sftp = agent.client().sftp().await?;
//! assert_eq!(sftp.stat(&*file).await?.size, Some(4));
//! # Ok(())
//! # }
//! ```
//!
//! It is the real agent, so **commands run on the computer of the test**, as its user, and file sessions see
//! its files: nothing is confined. [`TestAgent::folder`] is a place for the files of a test.
//!
//! [`TestAgent::stop`] makes it a machine that is gone. For functions that take results of the library, those
//! have constructors: [`ExitStatus::exited`](vsock_agent_client::ExitStatus::exited),
//! [`Output::new`](vsock_agent_client::Output::new) and others.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use tokio::{runtime::Builder, sync::oneshot};
use tracing::Level;
use vsock_agent::{
    Agent, CloudInit, Config, ExecPolicy, Features, GuestConfig, ListenAddress, Security,
};
use vsock_agent_client::{Client, Endpoint};
use vsock_agent_metadata::PresetConfig;
use vsock_agent_protocol::version::Family;

/// Name of the agent's socket in its folder.
const SOCKET: &str = "agent.sock";

/// Why an agent could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its folder cannot be made.
    #[error("cannot make the folder of the agent")]
    Folder(#[source] io::Error),
    /// Its thread or its runtime cannot be started.
    #[error("cannot start the thread of the agent")]
    Thread(#[source] io::Error),
    /// It cannot listen.
    #[error("the agent cannot listen")]
    Bind(#[source] Box<dyn Error + Send + Sync>),
}

/// An agent that listens without TLS on a Unix socket in a temporary folder, on a thread and a runtime of
/// its own.
///
/// Dropping it stops the agent, which ends its commands, and removes the folder. That waits for the agent:
/// 5 s at most if a client still uses it.
#[derive(Debug)]
pub struct TestAgent {
    client: Client,
    // Before the folder, which it uses.
    running: Running,
    folder: Folder,
}

impl TestAgent {
    /// Starts an agent, and returns when it listens.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start() -> Result<Self, StartError> {
        let folder = Folder::new().map_err(StartError::Folder)?;
        let running = Running::start(config(&folder.0))?;
        let endpoint = Endpoint::Unix(folder.0.join(SOCKET));
        Ok(Self {
            client: Client::new(endpoint, vsock_agent_client::Security::Plain),
            running,
            folder,
        })
    }

    /// A client of the agent.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The endpoint of the agent, for clients with other time limits.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.client.endpoint()
    }

    /// A folder for the files of the test. It is removed with the agent.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Stops the agent, as when its machine is shut down: commands end, and connections close. Blocks until
    /// it has stopped. Has no effect the second time.
    pub fn stop(&mut self) {
        self.running.stop();
    }
}

/// A configuration that touches nothing outside `folder`.
fn config(folder: &Path) -> Config {
    Config {
        listen: vec![ListenAddress::Unix(folder.join(SOCKET))],
        security: Security::Plain,
        allowed_cids: Vec::new(),
        end_commands: true,
        family: Family::Lxd,
        features: Features::all(),
        exec_policy: ExecPolicy::default(),
        guest: GuestConfig {
            host: None,
            default_host: None,
            sockets: vec![folder.join("guest.sock")],
            cloud_init: CloudInit::Lxd,
            cloud_init_reboot: false,
            ready_timeout: None,
            presets: PresetConfig::default(),
        },
        log: Level::WARN,
        root: folder.join("root"),
        share: None,
        status_ports: Vec::new(),
    }
}

/// The thread of an agent.
#[derive(Debug)]
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(config: Config) -> Result<Self, StartError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, is_bound) = mpsc::channel();
        let serve = async move {
            match Agent::bind(config).await {
                Ok(agent) => {
                    // Whoever starts it waits for this.
                    let _ = bound.send(Ok(()));
                    agent.run(|| (), async { drop(stopped.await) }).await;
                }
                Err(error) => {
                    let _ = bound.send(Err(StartError::Bind(error.into())));
                }
            }
        };
        let thread = thread::Builder::new()
            .name("test-agent".to_owned())
            .spawn(move || runtime.block_on(serve))
            .map_err(StartError::Thread)?;
        let running = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        let ended = |_| Err(StartError::Bind("the agent ended".into()));
        is_bound.recv().unwrap_or_else(ended)?;
        Ok(running)
    }

    fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Its panic was printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A new folder, removed in `Drop`.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vsock-agent-testing-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What a test has made unremovable stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn agents_of_several_tests_do_not_meet() {
        let (one, two) = (TestAgent::start().unwrap(), TestAgent::start().unwrap());
        assert_ne!(one.endpoint(), two.endpoint());
        for agent in [&one, &two] {
            let output = agent.client().exec("pwd", [""; 0]).cwd(agent.folder());
            let output = output.output().await.unwrap();
            let folder = agent.folder().as_os_str().as_encoded_bytes();
            assert_eq!(output.stdout.trim_ascii_end(), folder);
        }
    }

    #[tokio::test]
    async fn agent_that_stopped_is_gone_with_its_folder() {
        let mut agent = TestAgent::start().unwrap();
        let mut session = agent.client().exec("sleep", ["600"]).start().await.unwrap();
        agent.stop();
        agent.stop();
        assert!(session.wait().await.unwrap_err().may_have_run());
        let folder = agent.folder().to_owned();
        assert!(folder.exists());
        drop(agent);
        assert!(!folder.exists());
    }

    #[test]
    fn agent_that_cannot_listen_says_why() {
        let folder = Folder::new().unwrap();
        let error = Running::start(config(&folder.0.join("none"))).unwrap_err();
        assert!(matches!(error, StartError::Bind(_)), "{error:?}");
    }
}
