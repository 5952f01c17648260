//! The agent as a process: its signals, its limits and its log.

mod memory;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt;
use harness::{Pair, RawClient, TestFolder, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    time::timeout,
};

use crate::{cli_files::build, port_forward::forward};

const PATIENCE: Duration = Duration::from_secs(60);

/// A user that nobody is, so that the limit of its processes counts the agent alone.
const USER: u32 = 61234;

struct Agent {
    folder: TestFolder,
    child: Child,
}

impl Agent {
    /// Starts it by `launcher`, and waits until it listens.
    async fn start(folder: TestFolder, launcher: &[&str], flags: &[&str]) -> Self {
        let program = build("vsock-agent", "vsock-agent");
        let socket = format!("unix:{}", folder.path().join("agent.sock").display());
        let mut words: Vec<&str> = launcher.to_vec();
        words.push(program.to_str().unwrap());
        words.extend(["--cloud-init", "off", "--host", "off"]);
        words.extend(["--guest-socket", "off", "--listen", &socket]);
        if !flags.contains(&"--config") {
            words.extend(["--config", "/dev/null"]);
        }
        words.extend(flags);
        let child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let agent = Self { folder, child };
        let listens = async || UnixStream::connect(agent.socket()).await.is_ok();
        assert!(eventually(PATIENCE, listens).await, "{}", agent.log());
        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Has it read its configuration again, and waits until the log says `word` once more.
    async fn reload(&self, word: &str) {
        let count = |log: String| log.matches(word).count();
        let before = count(self.log());
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGHUP).unwrap();
        let is_said = async || count(self.log()) > before;
        assert!(eventually(PATIENCE, is_said).await, "{}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_running(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

/// Whether the agent answers on a new connection.
async fn is_let_in(client: &RawClient) -> bool {
    let mut stream = client.connect().await;
    let asked = stream
        .write_all(b"GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let mut status = [0; 12];
    asked.is_ok() && stream.read_exact(&mut status).await.is_ok() && &status == b"HTTP/1.1 200"
}

#[tokio::test]
async fn reload_disconnects_removed_clients() {
    let folder = TestFolder::new("reload");
    let (own, first, second) = (Pair::lxd(), Pair::lxd(), Pair::lxd());
    own.write_agent(folder.path(), &[&first, &second]);
    let identity = folder.path().display().to_string();
    let agent = Agent::start(folder, &["env"], &["--identity", &identity]).await;
    let client = |pair| RawClient::new(&agent.socket()).with_tls(pair, &own);
    let (first, second_client) = (client(&first), client(&second));
    let words = ["sh", "-c", "echo $$; exec cat"];
    let mut ending = first.exec(&words, json!({})).await;
    let mut staying = second_client.exec(&words, json!({})).await;
    let pid = ending.read_until("1", "\n").await.trim().to_owned();
    staying.read_until("1", "\n").await;
    let mut files = first.upgrade("/1.0/sftp", "sftp").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = json!({ "port": listener.local_addr().unwrap().port() });
    let (_near, _far) = forward(&first, &listener, port, "").await;
    let forwards = async |count: usize| {
        let metrics = second_client.get("/metrics").await.body;
        let line = format!("\nvsock_agent_port_forwards {count}\n");
        metrics.as_str().unwrap().contains(&line)
    };
    assert!(forwards(1).await);
    assert!(is_running(&pid));
    // So many that the agent forgets those who have left, and must not forget who has a session.
    for _ in 0..70 {
        assert!(is_let_in(&second_client).await);
    }

    fs::write(agent.folder.path().join("server.crt"), "nonsense").unwrap();
    agent.reload("left as it is").await;
    assert!(is_let_in(&first).await);

    own.write_agent(agent.folder.path(), &[&second]);
    agent.reload("are read again").await;
    let read = timeout(PATIENCE, files.read(&mut [0])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    let output = ending.sockets.get_mut("1").unwrap();
    while let Some(Ok(_)) = timeout(PATIENCE, output.next()).await.unwrap() {}
    assert!(eventually(PATIENCE, async || !is_running(&pid)).await);
    // Whoever it led to says nothing, and never closes.
    assert!(eventually(PATIENCE, async || forwards(0).await).await);
    assert!(!is_let_in(&first).await);

    assert!(is_let_in(&second_client).await);
    staying.send(b"still here\n").await;
    staying.read_until("1", "still here\n").await;
    let log = agent.log();
    let starts: Vec<_> = log
        .lines()
        .filter(|line| line.contains("a command starts"))
        .collect();
    assert_eq!(starts.len(), 2, "{log}");
    assert!(starts[0].contains("unix SHA256:"), "{log}");
    assert!(starts[0].contains("as user 0: \"sh\""), "{log}");
    assert!(!log.contains("exec cat"), "{log}");
    let ends = log.lines().find(|line| line.contains("a command ended"));
    assert!(ends.unwrap().contains("seconds="), "{log}");
    assert!(
        log.contains("an SFTP session is over who=\"unix SHA256:"),
        "{log}"
    );
}

#[tokio::test]
async fn reload_applies_features_and_exec_policy() {
    let folder = TestFolder::new("features");
    let config = folder.path().join("agent.toml");
    fs::write(&config, "").unwrap();
    let flags = ["--plain", "--config", config.to_str().unwrap()];
    let agent = Agent::start(folder, &["env"], &flags).await;
    let client = RawClient::new(&agent.socket());
    let post = async |program| client.post_exec(&[program], json!({})).await.status;
    assert_eq!(client.get("/1.0/state").await.status, 200);
    assert_eq!(post("/bin/false").await, 202);

    let text = "features = [\"exec\"]\nexec-commands = [\"/bin/true\"]\n";
    fs::write(&config, text).unwrap();
    agent.reload("are read again").await;
    assert_eq!(client.get("/1.0/state").await.status, 403);
    assert_eq!(post("/bin/true").await, 202);
    assert_eq!(post("/bin/false").await, 403);
}

#[tokio::test]
async fn agent_survives_when_no_thread_can_be_created() {
    let folder = TestFolder::new("threads");
    std::os::unix::fs::chown(folder.path(), Some(USER), None).expect("this test needs root");
    let user = USER.to_string();
    // The three that it starts with.
    let launcher = [
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "prlimit",
        "--nproc=3",
    ];
    let agent = Agent::start(folder, &launcher, &["--plain"]).await;
    let client = RawClient::new(&agent.socket());
    for round in 0..3 {
        for path in ["/1.0/state", "/1.0/metrics", "/metrics"] {
            let reply = client.get(path).await;
            assert_eq!(reply.status, 500, "{round} {path} {reply:?}");
        }
        let reply = client.post_exec(&["true"], json!({})).await;
        assert_eq!(reply.status, 500, "{round} {reply:?}");
        let error = reply.body["error"].as_str().unwrap();
        assert!(error.contains("temporarily unavailable"), "{error}");
        assert_eq!(client.get("/1.0").await.status, 200);
    }
    let log = agent.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// The files in `/proc` of a process whose memory is nobody's business are root's.
#[tokio::test]
async fn agent_is_not_dumpable() {
    let folder = TestFolder::new("dump");
    std::os::unix::fs::chown(folder.path(), Some(USER), None).expect("this test needs root");
    let user = USER.to_string();
    let launcher = [
        "setpriv",
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
    ];
    let agent = Agent::start(folder, &launcher, &["--plain"]).await;
    let process = format!("/proc/{}/fd", agent.child.id());
    let owner = fs::metadata(process).unwrap().uid();
    assert_eq!(owner, 0);
}

/// Whether the words on standard error name the command that mends the key's mode.
fn says_what_mends(key: &Path, stderr: &[u8]) -> bool {
    let command = format!("chmod 600 {}", key.display());
    String::from_utf8_lossy(stderr).contains(&command)
}

#[tokio::test]
async fn agent_refuses_a_world_readable_key() {
    let folder = TestFolder::new("key");
    let (own, host) = (Pair::lxd(), Pair::lxd());
    own.write_agent(folder.path(), &[&host]);
    let key = folder.path().join("agent.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let socket = format!("unix:{}", folder.path().join("agent.sock").display());
    let ends = tokio::process::Command::new(build("vsock-agent", "vsock-agent"))
        .args(["--config", "/dev/null", "--cloud-init", "off"])
        .args(["--host", "off", "--guest-socket", "off"])
        .args(["--listen", &socket, "--identity"])
        .arg(folder.path())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, ends).await.expect("it serves").unwrap();
    assert!(!output.status.success());
    assert!(says_what_mends(&key, &output.stderr), "{output:?}");
}

#[tokio::test]
async fn client_refuses_a_world_readable_key() {
    let folder = TestFolder::new("client-key");
    let (own, host) = (Pair::lxd(), Pair::lxd());
    own.write_for_cli(&folder.path().join("identity"), "vm", &host);
    let key = folder.path().join("identity/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    let config = "[vms.vm]\nendpoint = \"unix:/nonexistent\"\nidentity = \"identity\"\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let output = Command::new(build("vsock-agent-cli", "agent-cli"))
        .args(["info", "vm"])
        .env("AGENT_CLI_CONFIG", folder.path().join("config.toml"))
        .env("XDG_CONFIG_HOME", folder.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(says_what_mends(&key, &output.stderr), "{output:?}");
}

#[tokio::test]
async fn agent_refuses_an_identity_folder_of_another_user() {
    let folder = TestFolder::new("cwd");
    let (own, host) = (Pair::lxd(), Pair::lxd());
    own.write_agent(folder.path(), &[&host]);
    std::os::unix::fs::chown(folder.path(), Some(USER), None).expect("this test needs root");
    let socket = format!("unix:{}", folder.path().join("agent.sock").display());
    let ends = tokio::process::Command::new(build("vsock-agent", "vsock-agent"))
        .args(["--config", "/dev/null", "--listen", &socket])
        .current_dir(folder.path())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, ends).await.expect("it serves").unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no agent.crt in "), "{said}");
    assert!(!said.contains(folder.path().to_str().unwrap()), "{said}");
}
