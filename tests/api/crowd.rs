//! A crowd that connects to the TLS listener and says nothing, or only the first word.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use harness::{Pair, TestFolder, client_hello};
use tokio::time::Instant;

use crate::cli_files::{build, cli, stderr};

const PATIENCE: Duration = Duration::from_secs(60);

/// More than there are places, by far.
const CROWD: usize = 640;

/// The agent as a process, and what its client needs.
struct Scene {
    folder: TestFolder,
    agent: Child,
}

impl Scene {
    fn new() -> Self {
        let folder = TestFolder::new("crowd");
        let (agent, client) = (Pair::lxd(), Pair::lxd());
        agent.write_for_cli(&folder.path().join("identity"), "vm", &client);
        let endpoint = format!("unix:{}", folder.path().join("agent.sock").display());
        let identity = folder.path().join("identity/vm/guest");
        let agent = Command::new(build("vsock-agent", "vsock-agent"))
            .args(["--config", "/dev/null", "--cloud-init", "off"])
            .args(["--guest-socket", "off", "--host", "off", "--log", "error"])
            .args(["--listen", &endpoint, "--identity"])
            .arg(identity)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let config = format!("[vms.vm]\nendpoint = \"{endpoint}\"\nidentity = \"identity\"\n");
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let scene = Self { folder, agent };
        let start = Instant::now();
        while UnixStream::connect(scene.socket()).is_err() {
            assert!(start.elapsed() < PATIENCE, "the agent does not listen");
            thread::yield_now();
        }
        scene
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// How long `agent-cli info` takes.
    fn info(&self) -> Duration {
        let start = Instant::now();
        let output = Command::new(cli())
            .args(["info", "vm"])
            .env("AGENT_CLI_CONFIG", self.folder.path().join("config.toml"))
            .env("XDG_CONFIG_HOME", self.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let time = start.elapsed();
        assert!(output.status.success(), "{}", stderr(&output));
        time
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.agent.id());
        fs::read_dir(folder).unwrap().count()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// Connections that say `word` and no more, and are opened again whenever they are closed.
struct Crowd {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Crowd {
    fn gather(socket: &Path, word: &'static [u8]) -> Self {
        let (stop, opened) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&opened));
        let socket = socket.to_owned();
        let thread = thread::spawn(move || {
            let mut crowd: Vec<UnixStream> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                crowd.retain_mut(is_open);
                while crowd.len() < CROWD {
                    let Ok(mut one) = UnixStream::connect(&socket) else {
                        break;
                    };
                    one.set_nonblocking(true).unwrap();
                    let _ = one.write_all(word);
                    crowd.push(one);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let crowd = Self {
            stop,
            opened,
            thread: Some(thread),
        };
        let start = Instant::now();
        while crowd.opened() < CROWD {
            assert!(start.elapsed() < PATIENCE);
            thread::yield_now();
        }
        crowd
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_open(stream: &mut UnixStream) -> bool {
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// The 99th of 100 times in order.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100 - 1]
}

#[test]
#[expect(clippy::print_stdout, reason = "measurements, with --show-output")]
fn a_crowd_keeps_no_client_out() {
    let scene = Scene::new();
    let alone = p99((0..20).map(|_| scene.info()).collect());
    let hello = client_hello(&Pair::lxd(), &Pair::lxd());
    // Nothing; the first byte of a record; and all of a client's first part of the handshake, which
    // costs the agent its own part, so that it is slower for all.
    let second = Duration::from_secs(1);
    for (word, rounds, limit) in [
        (b"".as_slice(), 100, second),
        (b"\x16", 100, second),
        (hello.leak(), 20, 10 * second),
    ] {
        let crowd = Crowd::gather(&scene.socket(), word);
        let mut most = 0;
        let times = (0..rounds).map(|_| {
            most = most.max(scene.descriptors());
            scene.info()
        });
        let beside = p99(times.collect());
        let (opened, bytes) = (crowd.opened(), word.len());
        println!("info: {alone:?} alone, {beside:?} beside {opened} that say {bytes} bytes");
        println!("the agent's descriptors: {most}");
        assert!(opened > CROWD, "nobody had to leave");
        assert!(beside < limit, "{beside:?}, alone {alone:?}");
        assert!(most < 640, "{most} descriptors");
    }
}
