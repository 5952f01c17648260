//! `agent-cli serve` as root for monitors whose folder belongs to a user who wants to be root.
//!
//! `HOSTILE_SECONDS` says for how long.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        net::{UnixDatagram, UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::{Random, TestFolder, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use tokio::time::Instant;

use crate::cli_files::cli;

/// The user whose folder it is.
const USER: u32 = 65_534;

const GUESTS: usize = 10;
pub(crate) const PORT: &str = "9000";

/// Patience with what takes no time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the attack, unless `HOSTILE_SECONDS` says another.
const SECONDS: u64 = 8;

/// Most memory, in KiB, and most lines of log.
const MAX_MEMORY: u64 = 64 * 1024;
const MAX_LINES: usize = 100;

/// How long to be hostile: `otherwise`, unless `HOSTILE_SECONDS` says another time.
pub(crate) fn seconds(otherwise: u64) -> u64 {
    std::env::var("HOSTILE_SECONDS").map_or(otherwise, |text| text.parse().unwrap())
}

/// Killed in `Drop`.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All there is of a file but its times: device and inode, owner, group, mode, content.
type State = (u64, u64, u32, u32, u32, Vec<u8>);

/// Everything in a folder, and the folder.
fn states(folder: &Path) -> BTreeMap<PathBuf, State> {
    let mut states = BTreeMap::new();
    let mut paths = vec![folder.to_owned()];
    while let Some(path) = paths.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            paths.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let content = if found.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let state = (
            found.dev(),
            found.ino(),
            found.uid(),
            found.gid(),
            found.mode(),
            content,
        );
        states.insert(path, state);
    }
    states
}

/// What belongs to root: a secret, a program, a folder, and a dead socket in it by the name of a guest's.
fn outside(path: &Path) -> UnixListener {
    fs::create_dir_all(path.join("folder")).unwrap();
    for (name, mode) in [("secret", 0o600), ("program", 0o755)] {
        fs::write(path.join(name), name).unwrap();
        fs::set_permissions(path.join(name), Permissions::from_mode(mode)).unwrap();
    }
    drop(UnixListener::bind(path.join("folder/vm1_9000")).unwrap());
    // A daemon of the computer's, which does not expect `serve`.
    let daemon = UnixListener::bind(path.join("folder/vm0")).unwrap();
    daemon.set_nonblocking(true).unwrap();
    daemon
}

/// A configuration with guests in a folder.
pub(crate) fn configure(configuration: &Path, folder: &Path, guests: usize) {
    let text: String = (0..guests)
        .map(|number| {
            let kind = ["unix", "hybrid"][number % 2];
            let path = folder.join(format!("vm{number}"));
            let path = path.display();
            format!("[vms.vm{number}]\nendpoint = \"{kind}:{path}\"\nplain = true\n")
        })
        .collect();
    fs::create_dir_all(configuration).unwrap();
    fs::write(configuration.join("config.toml"), text).unwrap();
}

pub(crate) fn agent_cli(configuration: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(cli());
    command
        .args(arguments)
        .env("AGENT_CLI_CONFIG", configuration.join("config.toml"))
        .env("XDG_CONFIG_HOME", configuration)
        .stdin(Stdio::null());
    command
}

/// Starts it and waits for `READY=1`.
pub(crate) fn start_serving(configuration: &Path, log: &Path) -> Process {
    let notices = configuration.join("notify");
    let service_manager = UnixDatagram::bind(&notices).unwrap();
    service_manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let serving = agent_cli(configuration, &["serve", "--port", PORT])
        .env("NOTIFY_SOCKET", &notices)
        .stderr(fs::File::create(log).unwrap())
        .spawn();
    let serving = Process(serving.unwrap());
    let mut notice = [0; 64];
    let length = service_manager.recv(&mut notice).unwrap();
    assert_eq!(&notice[..length], b"READY=1");
    serving
}

/// The attacker, as a user who can read none of what is outside.
fn start_attack(folder: &Path, outside: &Path, seed: u64) -> Process {
    // The target folder may be root's alone.
    let program = folder.parent().unwrap().join("hostile-folder");
    fs::copy(env!("CARGO_BIN_EXE_hostile-folder"), &program).unwrap();
    let attacker = Command::new(program)
        .arg(folder)
        .arg(outside)
        .arg(seed.to_string())
        .uid(USER)
        .gid(USER)
        .spawn();
    Process(attacker.unwrap())
}

pub(crate) fn answers(socket: &Path) -> bool {
    let ask = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /1.0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("200 OK"))
}

/// The most memory that a process had, in KiB; nothing of one that has ended.
pub(crate) fn peak_memory(process: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line?.split_whitespace().next()?.parse().ok()
}

fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() || !path.is_dir() {
            fs::remove_file(path).unwrap()
        } else {
            fs::remove_dir_all(path).unwrap()
        }
    }
}

#[tokio::test]
async fn hostile_monitor_folder_yields_no_foreign_files() {
    assert!(geteuid().is_root(), "only root has something to lose");
    let own = TestFolder::new("hostile-folder");
    let [outside_path, users, configuration] =
        ["outside", "users", "configuration"].map(|name| own.path().join(name));
    let daemon = outside(&outside_path);
    let folder = users.join("vms");
    fs::create_dir_all(&folder).unwrap();
    for path in [&users, &folder] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    configure(&configuration, &folder, GUESTS);
    let before = states(&outside_path);
    let log = own.path().join("log");
    let mut serving = start_serving(&configuration, &log);

    let seed = Random::fresh_seed();
    let attacker = start_attack(&folder, &outside_path, seed);
    let seconds = seconds(SECONDS);
    let end = Instant::now() + Duration::from_secs(seconds);
    let is_over = async || states(&outside_path) != before || Instant::now() > end;
    assert!(eventually(TIMEOUT + Duration::from_secs(seconds), is_over).await);
    drop(attacker);

    assert_eq!(states(&outside_path), before, "changed, with seed {seed}");
    assert!(daemon.accept().is_err(), "a daemon outside was spoken to");
    assert!(serving.0.try_wait().unwrap().is_none(), "it ended");
    // Whoever was attacked is served again.
    let aside = folder.with_extension("aside");
    if aside.exists() {
        let _ = fs::remove_file(&folder);
        fs::rename(aside, &folder).unwrap();
    }
    empty(&folder);
    for number in 0..GUESTS {
        let socket = folder.join(format!("vm{number}_{PORT}"));
        assert!(
            eventually(TIMEOUT, async || answers(&socket)).await,
            "{number}"
        );
    }
    let memory = peak_memory(&serving.0).unwrap();
    kill(
        Pid::from_raw(serving.0.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(serving.0.wait().unwrap().success());
    let log = fs::read_to_string(&log).unwrap();
    assert!(memory < MAX_MEMORY, "{memory} KiB");
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < MAX_LINES, "{log}");
}
