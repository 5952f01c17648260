//! `agent-cli mux`, the real binary: what its process does for calls, and for whom. What commands do by it is
//! in `cli_exec.rs`, whose tests run both ways.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use harness::{Pair, TestAgent, TestFolder, eventually};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use vsock_agent::Security;

use crate::cli_files::{Runtime, cli, failed, stderr, stdout, succeeded};

/// Longest wait for something that takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds for a call to connect where it cannot.
const SHORTLY: &str = "1";

/// An agent with TLS, what a host needs for it, and a way to it that counts connections.
struct Scene {
    runtime: Runtime,
    agent: TestAgent,
    agents: Pair,
    folder: TestFolder,
    host: Pair,
    connections: Arc<AtomicUsize>,
}

impl Scene {
    /// Without a process that keeps connections.
    fn new() -> Self {
        let (agents, host) = (Pair::small(), Pair::small());
        let agent = TestAgent::start_with(|folder| {
            agents.write_agent(folder, &[&host]);
            Security::Tls(folder.to_owned())
        });
        let folder = TestFolder::new("cli-mux");
        agents.write_for_cli(folder.path(), "vm", &host);
        let connections = Arc::default();
        let way = folder.path().join("way.sock");
        count(&way, agent.socket(), Arc::clone(&connections));
        let config = format!("[vms.vm]\nendpoint = \"unix:{}\"\n", way.display());
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Self {
            runtime: Runtime::new(),
            agent,
            agents,
            folder,
            host,
            connections,
        }
    }

    fn started() -> Self {
        let mut scene = Self::new();
        scene.runtime = scene.runtime.started();
        scene
    }

    /// Connections that were made to the agent.
    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cli());
        let identity = self.folder.path();
        command.arg("--identity").arg(identity).args(arguments);
        command.env("AGENT_CLI_CONFIG", identity.join("config.toml"));
        command.env("XDG_RUNTIME_DIR", self.runtime.0.path());
        command.stdin(Stdio::null());
        command
    }

    fn exec(&self, command: &[&str]) -> Command {
        self.cli(&[&["exec", "vm", "--"], command].concat())
    }

    /// Runs a command that has to succeed.
    #[track_caller]
    fn run(&self) {
        assert_eq!(
            succeeded(&self.exec(&["echo", "x"]).output().unwrap()),
            "x\n"
        );
    }

    /// The same call by the process and without it.
    fn both(&self, change: impl Fn(&mut Command)) -> [Output; 2] {
        [true, false].map(|by_mux| {
            let mut command = self.cli(&["--connect-timeout", SHORTLY]);
            change(&mut command);
            if !by_mux {
                command.env_remove("XDG_RUNTIME_DIR");
            }
            command.output().unwrap()
        })
    }

    fn status(&self) -> Value {
        let output = self.runtime.mux(&["status", "--format", "json"]).output();
        serde_json::from_str(succeeded(&output.unwrap())).unwrap()
    }

    fn pid(&self) -> Pid {
        let pid = self.status()["pid"].as_i64().expect("it runs");
        Pid::from_raw(pid.try_into().unwrap())
    }

    fn directory(&self) -> PathBuf {
        self.runtime.0.path().join("agent-cli")
    }

    fn socket(&self) -> PathBuf {
        self.directory().join("mux.sock")
    }
}

/// Passes on connections, and counts them.
fn count(at: &Path, to: PathBuf, connections: Arc<AtomicUsize>) {
    let listener = UnixListener::bind(at).unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            connections.fetch_add(1, Ordering::SeqCst);
            let near = near.unwrap();
            let Ok(far) = UnixStream::connect(&to) else {
                continue;
            };
            let (back_from, back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || carry(&back_from, &back_to));
            thread::spawn(move || carry(&near, &far));
        }
    });
}

fn carry(mut from: &UnixStream, mut to: &UnixStream) {
    // One end may be gone.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Waits until a process has ended; one that nobody waits for has no program any more.
async fn ended(pid: Pid) -> bool {
    let program = format!("/proc/{pid}/exe");
    eventually(PATIENCE, async || fs::read_link(&program).is_err()).await
}

#[test]
fn calls_share_one_connection() {
    let scene = Scene::started();
    (0..3).for_each(|_| scene.run());
    succeeded(&scene.cli(&["info", "vm"]).output().unwrap());
    assert_eq!(scene.connections(), 1);
    let status = scene.status();
    let connections = status["connections"].as_array().unwrap();
    assert_eq!(connections.len(), 1, "{status}");
    assert_eq!(connections[0]["streams"], 0);
    assert_eq!(connections[0]["tls"], true);
    assert!(connections[0]["since"].as_u64() > Some(0));
    // Each for itself.
    let output = scene.cli(&["--http1", "exec", "vm", "--", "true"]).output();
    succeeded(&output.unwrap());
    assert!(scene.connections() > 1);
}

#[test]
fn a_process_starts_once() {
    let scene = Scene::started();
    let pid = scene.pid();
    let again = scene.runtime.mux(&["start"]).output().unwrap();
    assert_eq!(succeeded(&again), "running already\n");
    assert_eq!(scene.pid(), pid);
    assert_eq!(
        fs::metadata(scene.socket()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::metadata(scene.directory())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[tokio::test]
async fn a_command_under_way_goes_on_when_the_process_is_stopped() {
    let scene = Scene::started();
    let pid = scene.pid();
    let mut command = scene.exec(&["sh", "-c", "echo up; cat; exit 7"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(scene.status()["connections"][0]["streams"], 1);
    succeeded(&scene.runtime.mux(&["stop"]).output().unwrap());
    assert_eq!(scene.status()["running"], false);
    assert!(!scene.socket().exists());
    child.stdin.take().unwrap().write_all(b"still\n").unwrap();
    line.clear();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "still\n");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(ended(pid).await);
    scene.run();
}

#[test]
fn bytes_pass_in_both_directions_whole() {
    let scene = Scene::started();
    let input: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut command = scene.exec(&["cat"]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let own = input.clone();
    let writing = thread::spawn(move || stdin.write_all(&own).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == input, "{} bytes", output.stdout.len());
    assert_eq!(scene.connections(), 1);
}

#[test]
fn errors_are_those_without_the_process() {
    let mut scene = Scene::started();
    let missing = format!("unix:{}", scene.folder.path().join("none").display());
    let exec: &[&str] = &["exec", "vm", "--", "true"];
    let plain = [&["--plain"], exec].concat();
    let not_there = ["--plain", "exec", &missing, "--", "true"];
    let unknown = ["exec", "vm", "--", "/does/not/exist"];
    for arguments in [&plain[..], &not_there, &unknown] {
        let [by, without] = scene.both(|command| {
            command.args(arguments);
        });
        same(&by, &without);
    }
    let wrong = Pair::small();
    wrong.write_for_cli(scene.folder.path(), "vm", &scene.host);
    for output in scene.both(|command| {
        command.args(exec);
    }) {
        assert!(
            failed(&output).contains("is not this agent's"),
            "{}",
            stderr(&output)
        );
    }
    scene
        .agents
        .write_for_cli(scene.folder.path(), "vm", &scene.host);
    scene.run();
    scene.agent.stop();
    let [by, without] = scene.both(|command| {
        command.args(exec);
    });
    assert!(
        failed(&by).contains("handshake") || failed(&by).contains("closed"),
        "{}",
        stderr(&by)
    );
    assert_eq!(by.status.code(), without.status.code());
}

#[track_caller]
fn same(by: &Output, without: &Output) {
    assert_eq!(by.status.code(), without.status.code());
    assert_eq!(without_counts(stderr(by)), without_counts(stderr(without)));
    assert_eq!(stdout(by), stdout(without));
}

/// The number of attempts depends on the time.
fn without_counts(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_ascii_digit())
        .collect()
}

#[test]
fn a_replaced_identity_has_another_connection() {
    let scene = Scene::started();
    scene.run();
    // The agent does not know it, so only the old connection could be used.
    let stranger = Pair::small();
    scene
        .agents
        .write_for_cli(scene.folder.path(), "vm", &stranger);
    let [by, without] = scene.both(|command| {
        command.args(["exec", "vm", "--", "true"]);
    });
    assert!(failed(&by).contains("refuse"), "{}", stderr(&by));
    same(&by, &without);
    scene
        .agents
        .write_for_cli(scene.folder.path(), "vm", &scene.host);
    let before = scene.connections();
    scene.run();
    assert_eq!(scene.connections(), before, "the old one is still there");
}

#[test]
fn without_a_runtime_directory_there_is_no_process() {
    let scene = Scene::new();
    let output = scene
        .runtime
        .mux(&["start"])
        .env_remove("XDG_RUNTIME_DIR")
        .output();
    assert!(failed(&output.unwrap()).contains("XDG_RUNTIME_DIR is not set"));
    let output = scene.exec(&["true"]).env_remove("XDG_RUNTIME_DIR").output();
    succeeded(&output.unwrap());
    assert_eq!(scene.connections(), 1);
}

#[test]
fn a_directory_that_others_may_enter_is_not_used() {
    let scene = Scene::started();
    scene.run();
    fs::set_permissions(scene.directory(), Permissions::from_mode(0o755)).unwrap();
    scene.run();
    assert_eq!(scene.connections(), 2);
    for arguments in [["start"], ["status"], ["stop"]] {
        let output = scene.runtime.mux(&arguments).output().unwrap();
        assert!(
            failed(&output).contains("other users"),
            "{}",
            stderr(&output)
        );
    }
    fs::set_permissions(scene.directory(), Permissions::from_mode(0o700)).unwrap();
    scene.run();
    assert_eq!(scene.connections(), 2);
}

#[test]
fn a_process_of_another_user_is_not_used() {
    const UID: u32 = 4242;
    let scene = Scene::new();
    let runtime = scene.runtime.0.path();
    std::os::unix::fs::chown(runtime, Some(UID), Some(UID)).unwrap();
    // Where the program is may be closed to others.
    let program = runtime.join("program");
    let copied = Command::new("cp").args([cli(), &program]).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let theirs = |what: &str| {
        let mut command = Command::new(&program);
        command.args(["mux", what]).env("XDG_RUNTIME_DIR", runtime);
        command
            .env("AGENT_CLI_CONFIG", "/nonexistent")
            .current_dir("/")
            .uid(UID)
            .gid(UID);
        command.stdin(Stdio::null()).output().unwrap()
    };
    succeeded(&theirs("start"));
    scene.run();
    assert_eq!(scene.connections(), 1, "by itself");
    let output = scene.runtime.mux(&["status"]).output().unwrap();
    assert!(failed(&output).contains("user 4242"), "{}", stderr(&output));
    // A directory of ours, with their socket in it.
    std::os::unix::fs::chown(scene.directory(), Some(0), Some(0)).unwrap();
    let output = scene.runtime.mux(&["status"]).output().unwrap();
    assert!(failed(&output).contains("user 4242"), "{}", stderr(&output));
    scene.run();
    assert_eq!(scene.connections(), 2, "by itself");
    std::os::unix::fs::chown(scene.directory(), Some(UID), Some(UID)).unwrap();
    succeeded(&theirs("stop"));
}

#[tokio::test]
async fn a_process_that_is_not_used_ends() {
    let scene = Scene::new();
    succeeded(
        &scene
            .runtime
            .mux(&["start", "--persist", "1s"])
            .output()
            .unwrap(),
    );
    let pid = scene.pid();
    assert!(ended(pid).await);
    assert!(!scene.socket().exists());
}

#[tokio::test]
async fn a_process_without_its_socket_ends() {
    let scene = Scene::started();
    let pid = scene.pid();
    fs::remove_file(scene.socket()).unwrap();
    assert!(ended(pid).await);
}

#[tokio::test]
async fn a_killed_process_is_replaced() {
    let scene = Scene::started();
    scene.run();
    let pid = scene.pid();
    nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    assert!(ended(pid).await);
    scene.run();
    assert_eq!(scene.connections(), 2);
    succeeded(&scene.runtime.mux(&["start"]).output().unwrap());
    assert_ne!(scene.pid(), pid);
}

#[tokio::test]
async fn the_first_call_starts_the_process_if_the_configuration_says_so() {
    let scene = Scene::new();
    let path = scene.folder.path().join("config.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("persist = \"10m\"\n{config}")).unwrap();
    scene.run();
    assert!(eventually(PATIENCE, async || scene.status()["running"] == true).await);
    let before = scene.connections();
    (0..3).for_each(|_| scene.run());
    assert_eq!(scene.connections(), before + 1);
}
