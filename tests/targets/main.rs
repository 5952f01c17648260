//! Every command that copies, onto every kind of target, as root and as somebody else, with `cp` and
//! OpenSSH's `sftp` beside them; and those into the guest once more with OpenSSH's server there. `outcomes.txt` has what each does; `tests/README.md` has the
//! differences that are meant.
//!
//! It runs in namespaces of its own, which needs root. `TARGETS_WRITE=1` writes what it finds.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

mod cells;
mod commands;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read as _},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use harness::{StockServer, TestAgent, vm::paths};

use self::{
    cells::{Cell, KINDS},
    commands::{COMMANDS, INTO_THE_GUEST, Rig},
};

/// Set in the process that is in namespaces of its own.
const INSIDE: &str = "TARGETS_INSIDE";

/// Set in the process that is an agent and nothing else.
const AGENT: &str = "TARGETS_AGENT";

/// Who is not root (`nobody`).
pub(crate) const OTHER: u32 = 65534;

#[test]
fn copy_commands_match_the_table_of_outcomes() {
    if std::env::var_os(AGENT).is_some() {
        return serve();
    }
    if std::env::var_os(INSIDE).is_some() {
        return sweep();
    }
    let status = Command::new("unshare")
        .args(["--mount", "--uts", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("copy_commands_match_the_table_of_outcomes")
        .env(INSIDE, "1")
        .status()
        .expect("this test needs unshare(1)");
    assert!(status.success(), "see above; it needs root");
}

/// An agent, until stdin ends.
fn serve() {
    let agent = TestAgent::start();
    eprintln!("endpoint {}", agent.endpoint());
    let _ = std::io::stdin().read(&mut [0]);
}

/// An agent of a user.
struct Agent {
    process: Child,
    endpoint: String,
}

impl Agent {
    fn start(user: u32) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("copy_commands_match_the_table_of_outcomes")
            .env(AGENT, "1")
            .uid(user)
            .gid(user)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let endpoint = lines
            .map(Result::unwrap)
            .find_map(|line| line.strip_prefix("endpoint ").map(str::to_owned))
            .expect("the agent starts");
        Self { process, endpoint }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn sweep() {
    let folder = harness::TestFolder::new("sweep");
    cells::mount(folder.path(), "mode=755,size=64m");
    let mut found = String::new();
    for (who, user) in [("root", 0), ("nobody", OTHER)] {
        let agent = Agent::start(user);
        let rig = Rig::new(&agent.endpoint, user);
        try_all(&rig, who, COMMANDS, folder.path(), &mut found);
    }
    let server = StockServer::start();
    let rig = Rig::new(&server.endpoint(), 0);
    try_all(
        &rig,
        "stock server",
        INTO_THE_GUEST,
        folder.path(),
        &mut found,
    );
    cells::unmount(folder.path());
    compare(&found);
}

/// Writes down what each command does to each kind of target.
fn try_all(rig: &Rig, who: &str, commands: &[&str], folder: &Path, found: &mut String) {
    for kind in KINDS {
        let mut outcomes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for command in commands {
            let cell = Cell::new(folder, kind, rig.user);
            let ended = rig.run(command, &cell);
            let outcome = format!("{ended}: {}", cell.outcome());
            outcomes.entry(outcome).or_default().push(command);
        }
        for (outcome, commands) in outcomes {
            writeln!(
                found,
                "{who} | {kind} | {} | {outcome}",
                commands.join(", ")
            )
            .unwrap();
        }
    }
}

fn compare(found: &str) {
    let path: PathBuf = paths::repository().join("tests/targets/outcomes.txt");
    if std::env::var_os("TARGETS_WRITE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = read(&path);
    let differences: Vec<_> = lines_of(found, &expected, "+")
        .chain(lines_of(&expected, found, "-"))
        .collect();
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

fn lines_of<'a>(text: &'a str, other: &'a str, sign: &'a str) -> impl Iterator<Item = String> + 'a {
    text.lines()
        .filter(move |line| !other.lines().any(|known| known == *line))
        .map(move |line| format!("{sign} {line}"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
