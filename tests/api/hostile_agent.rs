//! Every command of `agent-cli`, and `serve`, on agents that mean no good.
//!
//! `HOSTILE_SECONDS` says for how long. What an agent does follows from a seed that is always the
//! same; a failure names the command and the seed.
#![expect(clippy::print_stdout, reason = "measurements, with --show-output")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use harness::{
    Random, TestFolder, eventually,
    hostile_agent::{HostileAgent, Manner},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use crate::{
    cli_files::cli,
    hostile_folder::{Process, agent_cli, peak_memory, seconds, start_serving},
};

/// Time for each test, unless `HOSTILE_SECONDS` says another.
const SECONDS: u64 = 8;

/// Entries of a listing without end for each of these seconds. Held, those of the default would take
/// more memory than is allowed.
const ENTRIES_PER_SECOND: u64 = 10_000;

/// Commands at once.
const THREADS: u64 = 3;

/// Longest that a command may take that waits a second for silence and two for a connection, on a
/// computer that does other things too. What an agent does without end it does for four seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Most memory, in KiB.
const MAX_MEMORY: u64 = 64 * 1024;

/// Most lines of log.
const MAX_LINES: usize = 100;

/// The code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// The commands, with `VM` for the endpoint. Those in the second list print what a guest has as it
/// is.
const LISTING: &[&str] = &[
    "info VM",
    "info --json VM",
    "ls VM:/x",
    "ls -l VM:/x",
    "ls -lR VM:/x",
    "ls -a --json VM:/x",
    "ls -R --json VM:/x",
    "stat VM:/x",
    "stat -L --json VM:/x",
    "stat -f VM:/x",
    "rm -r VM:/x",
    "rm -f VM:/x VM:/y",
    "mkdir -p VM:/x/y/z",
    "push source/file VM:/x",
    "push - VM:/x",
    "push -r source VM:/x",
    "push -r --resume --json source VM:/x",
    "pull VM:/file chosen/",
    "pull --resume VM:/file chosen/file",
    "pull -r VM:/x chosen",
    "pull -r -p --json VM:/x chosen/new",
    "pull -r --resume VM:/x chosen",
    "edit VM:/x",
    "sftp -b batch VM",
];
const RAW: &[&str] = &[
    "exec VM -- x",
    "exec -n VM -- x",
    "exec --timeout 1 VM -- x",
    "shell -T VM",
    "cat VM:/x",
    "pull VM:/x -",
    "sftp --stdio VM",
];

/// Those that speak to no agent; `serve` has a test of its own, and the process of `mux` has `cli_mux.rs`.
const WITHOUT_AGENT: &[&str] = &[
    "config",
    "help",
    "identity",
    "mux",
    "qemu-args",
    "serve",
    "vm",
];

const BATCH: &str = "\
-ls -l
-ls -lR /x
-cd x
-pwd
-get file chosen/file
-get -r x chosen
-get -a file chosen/again
-put source/file y
-put -R source z
-mkdir a
-rename a b
-ln -s a b
-chmod 600 a
-df -h
-stat x
-rm *
-rmdir a
";

/// Everything below a folder: what links lead to, what files have in them.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if path.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            found.insert(path, content);
        }
    }
    found
}

/// A folder for one command: what it may write is in `chosen`, `home` and `log`.
struct Folders(TestFolder);

impl Folders {
    fn new() -> Self {
        let folder = TestFolder::new("hostile-agent");
        for name in ["chosen", "home", "log", "kept/outside", "kept/source/sub"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let kept = folder.path().join("kept");
        fs::write(kept.join("outside/file"), "as it was").unwrap();
        fs::write(kept.join("source/file"), "content").unwrap();
        fs::write(kept.join("source/sub/large"), vec![7; 300_000]).unwrap();
        fs::write(kept.join("batch"), BATCH).unwrap();
        std::os::unix::fs::symlink("../chosen", kept.join("chosen")).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts a command and waits for it; gives how it ended and the most memory it had, in KiB.
    async fn run(&self, line: &str) -> (ExitStatus, u64) {
        let endpoint = format!("unix:{}", self.path("agent.sock").display());
        let words = line.split(' ').map(|word| word.replace("VM", &endpoint));
        let mut command = Command::new(cli());
        command
            .args([
                "--plain",
                "--connect-timeout",
                "2",
                "--silence-timeout",
                "1",
            ])
            .args(words)
            .current_dir(self.path("kept"))
            .stdin(File::open(self.path("kept/source/file")).unwrap())
            .stdout(File::create(self.path("log/stdout")).unwrap())
            .stderr(File::create(self.path("log/stderr")).unwrap())
            .env("AGENT_CLI_CONFIG", self.path("home/config.toml"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("home"))
            .env("EDITOR", "sh -c 'echo more >> \"$1\"' sh")
            .env_remove("VISUAL")
            .env_remove("XDG_STATE_HOME");
        let mut process = Process(command.spawn().unwrap());
        let mut memory = 0;
        let end = Instant::now() + DEADLINE;
        loop {
            // Gone when the process has ended.
            memory = peak_memory(&process.0).unwrap_or(memory);
            if let Some(status) = process.0.try_wait().unwrap() {
                return (status, memory);
            }
            assert!(Instant::now() < end, "it hangs");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn log(&self, name: &str) -> Vec<u8> {
        fs::read(self.path("log").join(name)).unwrap()
    }
}

/// Whether a terminal would obey some of it, or be deceived.
fn is_dangerous(text: &[u8]) -> Option<char> {
    let text = String::from_utf8_lossy(text);
    let bidi = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    text.chars().find(|&character| {
        (character.is_control() && character != '\n')
            || bidi.contains(&character)
            || ('\u{202a}'..='\u{202e}').contains(&character)
            || ('\u{2066}'..='\u{2069}').contains(&character)
    })
}

/// What commands needed: the most of each.
#[derive(Debug, Default)]
struct Needed {
    commands: usize,
    /// Resident, in KiB.
    memory: u64,
    log_lines: usize,
}

impl Needed {
    fn add(&mut self, other: &Self) {
        self.commands += other.commands;
        self.memory = self.memory.max(other.memory);
        self.log_lines = self.log_lines.max(other.log_lines);
    }
}

/// Runs a command on a hostile agent, and looks at what has become of everything.
async fn attack(line: &str, seed: u64, manner: Manner) -> (ExitStatus, Needed) {
    let folders = Folders::new();
    let kept = tree(&folders.path("kept"));
    let agent = HostileAgent::start(&folders.path("agent.sock"), seed, manner);
    let (status, memory) = folders.run(line).await;
    drop(agent);
    let stderr = folders.log("stderr");
    let said = String::from_utf8_lossy(&stderr);
    let said: String = said.chars().take(2000).collect();
    let said = format!("agent-cli {line}: {said}");
    assert!(status.code().is_some(), "{status}: {said}");
    assert_ne!(status.code(), Some(PANICKED), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(memory < MAX_MEMORY, "{memory} KiB; {said}");
    // What the command in the guest writes to its stderr is passed on as it is.
    let has_guests_stderr = line.starts_with("exec") || line.starts_with("shell");
    let lines = if has_guests_stderr {
        0
    } else {
        stderr.iter().filter(|byte| **byte == b'\n').count()
    };
    assert!(lines < MAX_LINES, "{lines} lines: {said}");
    if !has_guests_stderr {
        assert_eq!(is_dangerous(&stderr), None, "{said}");
    }
    if !RAW.contains(&line) {
        let stdout = folders.log("stdout");
        assert_eq!(is_dangerous(&stdout), None, "on stdout; {said}");
    }
    assert!(
        tree(&folders.path("kept")) == kept,
        "changed outside; {said}"
    );
    let names = fs::read_dir(folders.0.path()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["agent.sock", "chosen", "home", "kept", "log"]);
    let needed = Needed {
        commands: 1,
        memory,
        log_lines: lines,
    };
    (status, needed)
}

/// Each command in its turn, until the time is over.
#[test]
fn hostile_agent_cannot_harm_any_command() {
    let end = Instant::now() + Duration::from_secs(seconds(SECONDS));
    let commands: Vec<&str> = LISTING.iter().chain(RAW).copied().collect();
    let runs: Vec<Needed> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                let commands = &commands;
                scope.spawn(move || {
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    let numbers = (first..).step_by(usize::try_from(THREADS).unwrap());
                    let mut runs = Needed::default();
                    for number in numbers {
                        let at = usize::try_from(number).unwrap();
                        // Each has had its turn at least once.
                        if Instant::now() > end && at >= commands.len() {
                            break;
                        }
                        let line = commands[at % commands.len()];
                        let seed = Random::new(number).number();
                        let run = || runtime.block_on(attack(line, seed, Manner::Mixed));
                        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                        let Ok((_, needed)) = outcome else {
                            panic!("agent-cli {line}, with seed {seed}");
                        };
                        runs.add(&needed);
                    }
                    runs
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut all = Needed::default();
    runs.iter().for_each(|needed| all.add(needed));
    println!("each command: {all:?}");
    assert!(all.commands >= commands.len());
}

#[test]
fn hostile_agent_test_covers_every_command() {
    let help = Command::new(cli()).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    // A command's first line is indented by two, and what is said of it by more.
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands: BTreeSet<_> = commands
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let lines = LISTING.iter().chain(RAW).chain(WITHOUT_AGENT);
    let tried: BTreeSet<_> = lines
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(commands, tried);
}

#[tokio::test]
async fn endless_listings_are_given_up_with_bounded_memory() {
    let entries = usize::try_from(seconds(SECONDS) * ENTRIES_PER_SECOND).unwrap();
    let lines = [
        "ls -l VM:/x",
        "ls -R --json VM:/x",
        "rm -r VM:/x",
        "pull -r VM:/x chosen",
    ];
    let attacks = lines.map(async |line| {
        let start = Instant::now();
        let (status, needed) = attack(line, 1, Manner::EndlessListings { entries }).await;
        assert!(!status.success(), "agent-cli {line}");
        assert!(needed.log_lines > 0, "agent-cli {line} says nothing");
        println!("agent-cli {line}: {needed:?} in {:?}", start.elapsed());
    });
    join_all(attacks).await;
}

#[tokio::test]
async fn hostile_agent_cannot_harm_serve() {
    let own = TestFolder::new("hostile-agent");
    let configuration = own.path().join("configuration");
    let outside = own.path().join("outside");
    for folder in [&configuration, &outside] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(outside.join("file"), "as it was").unwrap();
    let sockets: Vec<PathBuf> = (0..8)
        .map(|number| own.path().join(format!("vm{number}")))
        .collect();
    let text: String = sockets
        .iter()
        .enumerate()
        .map(|(number, path)| {
            let path = path.display();
            format!("[vms.vm{number}]\nendpoint = \"unix:{path}\"\nplain = true\n")
        })
        .collect();
    fs::write(configuration.join("config.toml"), text).unwrap();
    let agents: Vec<_> = (0..)
        .zip(&sockets)
        .map(|(number, path)| HostileAgent::start(path, number * 1_000_000, Manner::Mixed))
        .collect();
    let log = own.path().join("log");
    let mut serving = start_serving(&configuration, &log);
    let end = Instant::now() + Duration::from_secs(seconds(SECONDS));
    while Instant::now() < end {
        sleep(Duration::from_secs(1)).await;
        for format in [&["serve", "--status"][..], &["serve", "--status", "--json"]] {
            let output = agent_cli(&configuration, format).output().unwrap();
            assert_eq!(is_dangerous(&output.stdout), None, "{output:?}");
            assert_ne!(output.status.code(), Some(PANICKED), "{output:?}");
        }
    }
    let memory = peak_memory(&serving.0).unwrap();
    assert!(serving.0.try_wait().unwrap().is_none(), "it ended");
    let pid = Pid::from_raw(serving.0.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let ends = async || serving.0.try_wait().unwrap().is_some();
    assert!(eventually(DEADLINE, ends).await, "it does not end");
    drop(agents);
    let log = fs::read(&log).unwrap();
    let said = String::from_utf8_lossy(&log);
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(is_dangerous(&log), None, "{said}");
    assert!(said.lines().count() < MAX_LINES, "{said}");
    assert!(memory < MAX_MEMORY, "{memory} KiB");
    let lines = said.lines().count();
    println!("serve: {memory} KiB, {lines} lines of log");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"as it was");
}
