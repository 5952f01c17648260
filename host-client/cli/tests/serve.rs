//! `agent-cli config` and `agent-cli serve` as processes, and a guest that asks by hand.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Patience with another process.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A configuration with two machines, `one` and `two`, that are not running.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("serve-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        let folder = Self(path);
        for name in ["one", "two"] {
            let endpoint = format!("unix:{}", folder.0.join(name).display());
            folder.succeed(&["--plain", "vm", "add", name, &endpoint]);
        }
        folder
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent-cli"));
        command
            .args(arguments)
            .env("AGENT_CLI_CONFIG", self.0.join("config.toml"))
            .env("XDG_CONFIG_HOME", &self.0)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}_9000"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `agent-cli serve`, killed in `Drop`.
struct Serving(Child);

impl Serving {
    /// Starts it and waits for `READY=1`.
    fn start(folder: &Folder) -> Self {
        let notices = folder.0.join("notify");
        let _ = fs::remove_file(&notices);
        let service_manager = UnixDatagram::bind(&notices).unwrap();
        service_manager.set_read_timeout(Some(TIMEOUT)).unwrap();
        let child = folder
            .command(&["serve", "--port", "9000"])
            .env("NOTIFY_SOCKET", &notices)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let serving = Self(child);
        let mut notice = [0; 64];
        let length = service_manager.recv(&mut notice).unwrap();
        assert_eq!(&notice[..length], b"READY=1");
        serving
    }

    fn terminate(mut self) -> Option<i32> {
        kill(
            Pid::from_raw(self.0.id().try_into().unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks as a guest does that knows no TLS. A status and the body.
fn ask(socket: &Path, request: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = "Host: custom.socket\r\nConnection: close\r\n";
    write!(stream, "{request} HTTP/1.1\r\n{head}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// Asks until the answer is that.
fn wait_for(socket: &Path, path: &str, expected: &str) {
    let start = std::time::SystemTime::now();
    loop {
        let (_, body) = ask(socket, &format!("GET {path}"));
        if body["metadata"] == expected {
            return;
        }
        assert!(start.elapsed().unwrap() < TIMEOUT, "{path} is still {body}");
    }
}

#[test]
fn config_set_get_show_and_unset() {
    let folder = Folder::new("set");
    folder.succeed(&["config", "set", "one", "user.a", "b=ä€"]);
    folder.succeed(&[
        "config",
        "set",
        "one",
        "user.x=1",
        "user.y=2",
        "devices.eth0.type=nic",
    ]);
    assert_eq!(
        folder.succeed(&["config", "get", "one", "user.a"]),
        "b=ä€\n"
    );
    assert_eq!(folder.succeed(&["config", "get", "two", "user.a"]), "\n");
    let shown = folder.succeed(&["config", "show", "one"]);
    assert!(shown.contains("\"user.a\": \"b=ä€\""), "{shown}");
    folder.succeed(&["config", "unset", "one", "user.a", "devices.eth0"]);
    let shown = folder.succeed(&["config", "show", "--format", "json", "one"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        shown["config"],
        serde_json::json!({ "user.x": "1", "user.y": "2" })
    );
    assert_eq!(shown["devices"], serde_json::json!({}));
}

#[test]
fn config_set_from_stdin_is_exact_and_invalid_yaml_is_refused_with_position() {
    let folder = Folder::new("stdin");
    let pipe = |text: &[u8]| {
        let mut child = folder
            .command(&["config", "set", "one", "cloud-init.user-data", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Too much is refused before all of it is read.
        let _ = child.stdin.take().unwrap().write_all(text);
        child.wait_with_output().unwrap()
    };
    let good = "#cloud-config\nwrite_files:\n- {path: /a, content: \"ä\\t\"}\n\n";
    assert!(pipe(good.as_bytes()).status.success());
    let bad = pipe(b"#cloud-config\nruncmd:\n- a: b: c\n");
    let stderr = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(125));
    assert!(
        stderr.contains("cloud-init.user-data") && stderr.contains("line 3, column 7"),
        "{stderr}"
    );
    assert_eq!(pipe(b"\x1f\x8b\xff").status.code(), Some(125));
    assert_eq!(pipe(&vec![b'#'; 5 << 20]).status.code(), Some(125));
    let kept = folder.succeed(&["config", "show", "--format", "json", "one"]);
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["config"]["cloud-init.user-data"], good);
}

#[test]
fn config_needs_a_named_vm_and_vm_remove_deletes_it() {
    let folder = Folder::new("names");
    let stderr = folder.refused(&["config", "set", "three", "user.a=b"]);
    assert!(stderr.contains("one, two"), "{stderr}");
    folder.refused(&["config", "show", "vsock:3"]);
    folder.succeed(&["config", "set", "one", "user.a=b"]);
    folder.succeed(&["vm", "remove", "one"]);
    assert!(!folder.0.join("instances/one.toml").exists());
}

#[test]
fn serve_gives_each_guest_its_own_data() {
    let folder = Folder::new("guests");
    folder.succeed(&["config", "set", "one", "user.a=of one"]);
    folder.succeed(&["config", "set", "two", "user.a=of two"]);
    let _serving = Serving::start(&folder);
    let (one, two) = (folder.socket("one"), folder.socket("two"));
    wait_for(&one, "/1.0/config/user.a", "of one");
    wait_for(&two, "/1.0/config/user.a", "of two");
    let mode = fs::metadata(&one).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // What our host does not have is off, as on a host of LXD's.
    let (status, body) = ask(&one, "GET /1.0/ubuntu-pro");
    assert_eq!(
        (status, &body["metadata"]["guest_attach"]),
        (200, &"off".into())
    );
    for request in [
        "POST /1.0/ubuntu-pro/token",
        "GET /1.0/storage-pools/a",
        "PATCH /1.0/instances/a",
    ] {
        assert_eq!(ask(&one, request).0, 403, "{request}");
    }
    assert_eq!(ask(&one, "GET /1.0/storage-pools").0, 404);

    folder.succeed(&["config", "set", "one", "user.a=other"]);
    wait_for(&one, "/1.0/config/user.a", "other");
    assert_eq!(ask(&two, "GET /1.0/config/user.a").1["metadata"], "of two");

    // A machine that is named while the process runs.
    let endpoint = format!("unix:{}", folder.0.join("three").display());
    folder.succeed(&["--plain", "vm", "add", "three", &endpoint]);
    let three = folder.socket("three");
    let start = std::time::SystemTime::now();
    while !three.exists() {
        assert!(start.elapsed().unwrap() < TIMEOUT, "three is not served");
        std::thread::yield_now();
    }
    assert_eq!(ask(&three, "GET /1.0").1["metadata"]["state"], "Started");
}

#[test]
fn vm_removed_while_served_leaves_no_data() {
    let folder = Folder::new("removed");
    let _serving = Serving::start(&folder);
    for name in ["a", "b", "c"] {
        let endpoint = format!("unix:{}", folder.0.join(name).display());
        folder.succeed(&["--plain", "vm", "add", name, &endpoint]);
        let socket = folder.socket(name);
        let start = std::time::SystemTime::now();
        while !socket.exists() {
            assert!(start.elapsed().unwrap() < TIMEOUT, "{name} is not served");
            std::thread::yield_now();
        }
        folder.succeed(&["vm", "remove", name]);
        while socket.exists() {
            assert!(start.elapsed().unwrap() < TIMEOUT, "{name} is served");
            std::thread::yield_now();
        }
        let data = folder.0.join(format!("instances/{name}.toml"));
        assert!(!data.exists(), "{name}");
    }
}

#[test]
fn disconnected_serve_client_frees_its_resources() {
    let folder = Folder::new("hung-up");
    let large = "x".repeat(1 << 20);
    let mut set = folder.command(&["config", "set", "one", "user.large", "-"]);
    let mut set = set.stdin(Stdio::piped()).spawn().unwrap();
    set.stdin
        .take()
        .unwrap()
        .write_all(large.as_bytes())
        .unwrap();
    assert!(set.wait().unwrap().success());
    let serving = Serving::start(&folder);
    let one = folder.socket("one");
    assert_eq!(ask(&one, "GET /1.0").0, 200);
    let descriptors = || {
        let open = fs::read_dir(format!("/proc/{}/fd", serving.0.id()));
        open.unwrap().count()
    };
    let before = descriptors();
    for request in [
        "",
        "GET /1.0 HT",
        "GET /1.0/config/user.large HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n",
        "PATCH /1.0 HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{",
    ] {
        for _ in 0..20 {
            let mut stream = UnixStream::connect(&one).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
        }
        // Far less than any deadline of a connection.
        let start = std::time::SystemTime::now();
        while descriptors() > before + 2 {
            let waited = start.elapsed().unwrap();
            assert!(waited < Duration::from_secs(5), "{request}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn serve_status_shows_guest_text_escaped() {
    let folder = Folder::new("shown");
    let agent = "\u{9b}31m\u{202e}".repeat(100_000);
    let one = serde_json::json!({
        "endpoint": "unix:/x", "guest": { "state": "Ready", "said_at": 1 },
        "agent": agent, "since": 1, "error": agent,
    });
    let status = serde_json::json!({ "pid": 1, "port": 2, "guests": { "one": one } });
    fs::write(folder.0.join("serve.json"), status.to_string()).unwrap();
    for format in ["human", "json"] {
        let shown = folder.succeed(&["serve", "--status", "--format", format]);
        assert!(shown.len() < 10_000, "{} bytes", shown.len());
        assert!(!shown.contains(['\u{9b}', '\u{202e}']), "{shown}");
    }
}

#[test]
fn only_one_serve_process_per_configuration() {
    let folder = Folder::new("end");
    let stale = folder.socket("one");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let serving = Serving::start(&folder);
    assert_eq!(ask(&stale, "GET /").1["metadata"][0], "/1.0");
    let stderr = folder.refused(&["serve", "--port", "9001"]);
    assert!(stderr.contains("another"), "{stderr}");
    let status = folder.succeed(&["serve", "--status", "--format", "json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["running"], true);
    assert_eq!(status["last"]["guests"]["one"]["guest"]["state"], "Started");
    assert_eq!(serving.terminate(), Some(0));
    assert!(!stale.exists());
    let status = folder.succeed(&["serve", "--status"]);
    assert!(status.starts_with("not running"), "{status}");
}
