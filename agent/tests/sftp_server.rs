//! The program as an SFTP server: by its sub-command, and as an agent that starts itself again for
//! a session of another user. Needs root, as the agent does.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use vsock_agent_protocol::sftp::{
    Attributes, Reply, Request,
    extension::{HASH, HashRange, RangeHash, SESSION},
    open_flags, status,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vsock-agent");

/// Somebody without rights who is on every system: Debian's and others' number of `nobody`.
const NOBODY: u32 = 65_534;

/// One end of a session, one request at a time.
struct Client<R, W> {
    from: R,
    to: W,
}

impl<R: Read, W: Write> Client<R, W> {
    fn start(from: R, mut to: W) -> (Self, Vec<(Bytes, Bytes)>) {
        let mut init = BytesMut::new();
        Request::Init { version: 3 }.encode(0, &mut init);
        to.write_all(&init).unwrap();
        let mut client = Self { from, to };
        match client.receive() {
            Reply::Version { extensions, .. } => (client, extensions),
            other => panic!("{other:?}"),
        }
    }

    fn receive(&mut self) -> Reply {
        let mut length = [0; 4];
        self.from.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.from.read_exact(&mut frame).unwrap();
        Reply::decode(frame.into()).unwrap().1
    }

    fn ask(&mut self, request: &Request) -> Reply {
        let mut out = BytesMut::new();
        request.encode(7, &mut out);
        self.to.write_all(&out).unwrap();
        self.receive()
    }

    fn code(&mut self, request: &Request) -> u32 {
        match self.ask(request) {
            Reply::Status { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    fn real_path(&mut self) -> Bytes {
        let path = Bytes::from_static(b".");
        match self.ask(&Request::Realpath { path }) {
            Reply::Names { names } => names[0].name.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Writes a file, hashes it while it is open for writing only, and gives its owner.
    fn write_and_hash(&mut self, path: &Path) -> (u32, u32) {
        let open = Request::Open {
            path: bytes(path),
            flags: open_flags::WRITE | open_flags::CREATE,
            attributes: Attributes {
                permissions: Some(0o666),
                ..Attributes::default()
            },
        };
        let Reply::Handle { handle } = self.ask(&open) else {
            panic!("{}", path.display())
        };
        let write = Request::Write {
            handle: handle.clone(),
            offset: 0,
            data: Bytes::from_static(b"data"),
        };
        assert_eq!(self.code(&write), status::OK);
        let range = HashRange {
            handle,
            offset: 0,
            length: u64::MAX,
        };
        let hash = Request::Extended {
            name: Bytes::from_static(HASH.as_bytes()),
            data: range.encode(),
        };
        let Reply::Extended { data } = self.ask(&hash) else {
            panic!("no hash")
        };
        assert_eq!(RangeHash::decode(data).unwrap().length, 4);
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(
            metadata.permissions().mode() & 0o777,
            0o644,
            "the usual mask"
        );
        (metadata.uid(), metadata.gid())
    }
}

fn bytes(path: &Path) -> Bytes {
    Bytes::copy_from_slice(path.to_str().unwrap().as_bytes())
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// One that others may look into, with another in it that is theirs.
    fn with_nobodys(name: &str) -> (Self, PathBuf) {
        let folder = Self::new(name);
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
        let theirs = folder.0.join("theirs");
        fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
        (folder, theirs)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Server(Child);

impl Server {
    fn start(folder: &Path, arguments: &[&str]) -> (Self, Client<ChildStdout, ChildStdin>) {
        let mut command = Command::new(PROGRAM);
        command.arg("sftp-server").args(arguments);
        command
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (from, to) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
        (Self(child), Client::start(from, to).0)
    }

    fn wait(mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sftp_server_serves_stdio_until_end_of_file() {
    let folder = Folder::new("agent-stdio");
    let (server, mut client) = Server::start(&folder.0, &[]);
    let folder_itself = folder.0.canonicalize().unwrap();
    assert_eq!(client.real_path(), bytes(&folder_itself));
    client.write_and_hash(&folder.0.join("file"));
    drop(client);
    assert!(server.wait().success());
}

#[test]
fn sftp_server_has_root_and_read_only_options() {
    let folder = Folder::new("agent-stdio-root");
    let root = folder.0.to_str().unwrap();
    let (_server, mut client) = Server::start(Path::new("/"), &["--read-only", "--root", root]);
    assert_eq!(client.real_path(), "/");
    let mkdir = Request::Mkdir {
        path: Bytes::from_static(b"d"),
        attributes: Attributes::default(),
    };
    assert_eq!(client.code(&mkdir), status::PERMISSION_DENIED);
}

#[test]
fn sftp_server_reports_unsupported_options() {
    for (arguments, word) in [
        (["--user", "no.such.user"], "no.such.user"),
        (["--root", "/no/such/place"], "/no/such/place"),
        (["--port", "1"], "--port"),
    ] {
        let mut command = Command::new(PROGRAM);
        let output = command.arg("sftp-server").args(arguments).output().unwrap();
        assert!(!output.status.success());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn sftp_server_drops_privileges_permanently() {
    let (folder, theirs) = Folder::with_nobodys("agent-stdio-user");
    let user = NOBODY.to_string();
    let (server, mut client) = Server::start(Path::new("/"), &["--user", &user]);
    let owner = client.write_and_hash(&theirs.join("file"));
    assert_eq!(owner, (NOBODY, NOBODY));
    let mkdir = Request::Mkdir {
        path: bytes(&folder.0.join("mine")),
        attributes: Attributes::default(),
    };
    assert_eq!(client.code(&mkdir), status::PERMISSION_DENIED);
    let words = fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
    let line = |name: &str| {
        let mut lines = words.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("Uid:"), [&user[..]; 4].join(" "));
    assert_eq!(line("Gid:"), [&user[..]; 4].join(" "));
    assert_eq!(line("Groups:"), user);
    assert_eq!(line("CapEff:"), "0000000000000000");
}

/// The processes that a process has started.
fn children(pid: u32) -> Vec<String> {
    // Any of its threads may have.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")));
    let lists: String = lists.filter_map(Result::ok).collect();
    lists.split_ascii_whitespace().map(str::to_owned).collect()
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        thread::park_timeout(Duration::from_millis(20));
    }
    panic!("it never became true");
}

#[test]
fn sftp_session_of_another_user_runs_in_its_own_process() {
    let (folder, theirs) = Folder::with_nobodys("agent-user");
    let socket = folder.0.join("sock");
    let mut command = Command::new(PROGRAM);
    command
        .args(["--plain", "--listen"])
        .arg(format!("unix:{}", socket.display()));
    let agent = Server(command.stderr(Stdio::null()).spawn().unwrap());
    wait_until(|| UnixStream::connect(&socket).is_ok());
    let mut stream = UnixStream::connect(&socket).unwrap();
    let head = format!(
        "GET /1.0/sftp?user={NOBODY} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
         Upgrade: sftp\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend_from_slice(&byte);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    let (mut client, extensions) = Client::start(stream.try_clone().unwrap(), stream);
    let said = extensions.iter().find(|(name, _)| name == SESSION);
    assert_eq!(said.unwrap().1, format!("user={NOBODY}"));
    let owner = client.write_and_hash(&theirs.join("file"));
    assert_eq!(owner, (NOBODY, NOBODY));
    let process = children(agent.0.id());
    let [process] = &process[..] else {
        panic!("{process:?}")
    };
    let opened = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let opened = opened.map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    let opened: Vec<_> = opened.map(|path| path.display().to_string()).collect();
    assert!(
        !opened
            .iter()
            .any(|path| path.contains("sock") && path.starts_with('/')),
        "{opened:?}"
    );
    assert_eq!(fs::read(format!("/proc/{process}/environ")).unwrap(), b"");
    drop(client);
    wait_until(|| children(agent.0.id()).is_empty());
}
