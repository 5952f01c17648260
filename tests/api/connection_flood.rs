//! Many connections to a TLS listener, of the agent or of `agent-cli serve`, that send nothing or only
//! part of a `ClientHello`.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use harness::{Pair, RawClient, TestFolder, client_hello};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{runtime, time::Instant};

use crate::{
    cli_files::{build, stderr},
    hostile_folder::{PORT, Process, agent_cli, peak_memory, start_serving},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// More than there are places, by far.
const CONNECTIONS: usize = 640;

/// A listener's process, and what those who may ask it need.
struct Scene {
    folder: TestFolder,
    agent: Pair,
    host: Pair,
    socket: PathBuf,
    process: Process,
}

impl Scene {
    fn agent() -> Self {
        Self::new("flood-agent", |folder| {
            let socket = folder.join("vm");
            let agent = Command::new(build("vsock-agent", "vsock-agent"))
                .args(["--config", "/dev/null", "--cloud-init", "off"])
                .args(["--guest-socket", "off", "--host", "off", "--log", "error"])
                .args(["--listen", &endpoint(&socket), "--identity"])
                .arg(folder.join("identity/vm/guest"))
                .stdin(Stdio::null())
                .spawn();
            let agent = Process(agent.unwrap());
            let start = Instant::now();
            while UnixStream::connect(&socket).is_err() {
                assert!(start.elapsed() < PATIENCE, "the agent does not listen");
                thread::yield_now();
            }
            (socket, agent)
        })
    }

    fn serve() -> Self {
        Self::new("flood-serve", |folder| {
            let serving = start_serving(folder, &folder.join("log"));
            (folder.join(format!("vm_{PORT}")), serving)
        })
    }

    fn new(name: &str, start: impl FnOnce(&Path) -> (PathBuf, Process)) -> Self {
        let folder = TestFolder::new(name);
        let (agent, host) = (Pair::lxd(), Pair::lxd());
        agent.write_for_cli(&folder.path().join("identity"), "vm", &host);
        let endpoint = endpoint(&folder.path().join("vm"));
        let config = format!("[vms.vm]\nendpoint = \"{endpoint}\"\nidentity = \"identity\"\n");
        fs::write(folder.path().join("config.toml"), config).unwrap();
        let (socket, process) = start(folder.path());
        Self {
            folder,
            agent,
            host,
            socket,
            process,
        }
    }

    /// What a host asks its agent.
    fn info(&self) {
        let output = agent_cli(self.folder.path(), &["info", "vm"]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// What an agent asks its host.
    fn data(&self) {
        let client = RawClient::new(&self.socket).with_tls(&self.agent, &self.host);
        let runtime = runtime::Builder::new_current_thread().enable_io().build();
        let reply = runtime.unwrap().block_on(client.get("/1.0"));
        assert_eq!(reply.status, 200);
    }

    /// The size of the listener's table of descriptors: a power of two that grows with the largest
    /// number of open ones (`FDSize` in `proc_pid_status(5)`).
    fn descriptor_slots(&self) -> usize {
        let status = format!("/proc/{}/status", self.process.0.id());
        let status = fs::read_to_string(status).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        size.unwrap().trim().parse().unwrap()
    }
}

fn endpoint(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}

/// Connections that say `word` and no more, and are opened again whenever they are closed.
struct Flood {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flood {
    fn gather(socket: &Path, word: &'static [u8]) -> Self {
        let (stop, opened) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&opened));
        let socket = socket.to_owned();
        let thread = thread::spawn(move || {
            let mut flood: Vec<UnixStream> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                flood.retain_mut(is_open);
                while flood.len() < CONNECTIONS {
                    let Ok(mut one) = UnixStream::connect(&socket) else {
                        break;
                    };
                    one.set_nonblocking(true).unwrap();
                    let _ = one.write_all(word);
                    flood.push(one);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                wait(&flood);
            }
        });
        let flood = Self {
            stop,
            opened,
            thread: Some(thread),
        };
        let start = Instant::now();
        while flood.opened() < CONNECTIONS {
            assert!(start.elapsed() < PATIENCE);
            thread::yield_now();
        }
        flood
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until one of them hears something, or some time has passed: the processor belongs to those
/// who are measured.
fn wait(flood: &[UnixStream]) {
    let one = |stream| PollFd::new(UnixStream::as_fd(stream), PollFlags::POLLIN);
    let mut all: Vec<_> = flood.iter().map(one).collect();
    poll(&mut all, PollTimeout::from(100_u8)).unwrap();
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
fn p99(ask: &dyn Fn(), rounds: usize) -> Duration {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            ask();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[rounds * 99 / 100 - 1]
}

/// Holds that asking takes less than a second beside each flood; a computer that has other things to
/// do is given as much longer as one alone takes.
#[expect(clippy::print_stdout, reason = "measurements, with --show-output")]
fn no_crowd_keeps_out(scene: &Scene, ask: &dyn Fn()) {
    let alone = p99(ask, 20);
    let limit = Duration::from_secs(1).max(10 * alone);
    let hello = client_hello(&Pair::lxd(), &Pair::lxd());
    // Nothing; the first byte of a record; and all of a client's first part of the handshake, which
    // costs the listener its own part.
    for word in [b"".as_slice(), b"\x16", hello.leak()] {
        let flood = Flood::gather(&scene.socket, word);
        let beside = p99(ask, 100);
        let (opened, bytes) = (flood.opened(), word.len());
        println!("{alone:?} alone, {beside:?} beside {opened} that say {bytes} bytes");
        let memory = peak_memory(&scene.process.0).unwrap();
        let slots = scene.descriptor_slots();
        println!("less than {slots} descriptors and {memory} KiB at most");
        assert!(opened > CONNECTIONS, "nobody had to leave");
        assert!(beside < limit, "{beside:?}, alone {alone:?}");
        assert!(
            slots <= CONNECTIONS.next_power_of_two(),
            "{slots} descriptors"
        );
    }
}

#[test]
fn connection_flood_does_not_block_agent_clients() {
    let scene = Scene::agent();
    no_crowd_keeps_out(&scene, &|| scene.info());
}

#[test]
fn connection_flood_does_not_block_served_guests() {
    let scene = Scene::serve();
    no_crowd_keeps_out(&scene, &|| scene.data());
}
