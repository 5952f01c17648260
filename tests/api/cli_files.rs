//! Files by `agent-cli`, the real binary, against the agent.

mod batch;
mod conditions;
mod edit;
mod hostile;
mod prompt;
mod tools;
mod transfer;

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use harness::{TestAgent, TestFolder, vm::paths};

/// The code when agent-cli itself failed.
pub(crate) const OURS: i32 = 125;

/// An agent, and a folder that both ends see.
pub(crate) struct Ends {
    /// Where calls look for a process that keeps connections.
    pub(crate) runtime: Option<Runtime>,
    pub(crate) agent: TestAgent,
    pub(crate) folder: TestFolder,
}

impl Ends {
    pub(crate) fn start() -> Self {
        Self {
            runtime: None,
            agent: TestAgent::start(),
            folder: TestFolder::new("cli-files"),
        }
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.folder.path().join(name.as_ref())
    }

    pub(crate) fn write(&self, name: impl AsRef<OsStr>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn mkdir(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The names in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<OsString> {
        names(self.folder.path())
    }

    /// A path as the command line writes it: `VM:/PATH`.
    pub(crate) fn place(&self, path: impl AsRef<Path>) -> OsString {
        let mut place = OsString::from(self.agent.endpoint());
        place.push(":");
        place.push(path.as_ref());
        place
    }

    /// `agent-cli` without any configuration, in the folder.
    pub(crate) fn cli<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(cli());
        command.arg("--plain").args(arguments);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        let nowhere = self.agent.folder().join("no-config");
        command
            .env("AGENT_CLI_CONFIG", nowhere)
            .env("HOME", self.agent.folder());
        command.env_remove("XDG_STATE_HOME");
        match &self.runtime {
            Some(runtime) => command.env("XDG_RUNTIME_DIR", runtime.0.path()),
            None => command.env_remove("XDG_RUNTIME_DIR"),
        };
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.cli(arguments).output().unwrap()
    }

    /// Does the lines, which start in the folder, as a batch.
    pub(crate) fn batch(&self, lines: impl AsRef<[u8]>) -> Output {
        let endpoint = self.agent.endpoint();
        let mut command = self.cli(["sftp", "-b", "-", &endpoint]);
        let start = format!("@cd '{}'\n", self.folder.path().display());
        feed(&mut command, &[start.as_bytes(), lines.as_ref()].concat())
    }
}

/// A directory for the socket of `agent-cli mux`, which is stopped when this is dropped.
pub(crate) struct Runtime(pub(crate) TestFolder);

impl Runtime {
    pub(crate) fn new() -> Self {
        Self(TestFolder::new("runtime"))
    }

    /// `agent-cli mux`, with these arguments.
    pub(crate) fn mux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cli());
        command.arg("mux").args(arguments).stdin(Stdio::null());
        command.env("AGENT_CLI_CONFIG", self.0.path().join("no-config"));
        command.env("XDG_RUNTIME_DIR", self.0.path());
        command
    }

    /// Starts the process.
    pub(crate) fn started(self) -> Self {
        succeeded(&self.mux(&["start"]).output().unwrap());
        self
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // There may be none.
        let _ = self.mux(&["stop"]).output();
    }
}

pub(crate) fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<OsString> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

pub(crate) fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

pub(crate) fn feed(command: &mut Command, input: &[u8]) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended before it read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// `agent-cli`, built once, beside the program that runs this.
pub(crate) fn cli() -> &'static Path {
    static CLI: OnceLock<PathBuf> = OnceLock::new();
    CLI.get_or_init(|| build("vsock-agent-cli", "agent-cli"))
}

/// Builds a program of ours, and says where it is.
pub(crate) fn build(package: &str, program: &str) -> PathBuf {
    compile(package, "--bin", program).join(program)
}

/// Builds an example of ours, and says where it is.
pub(crate) fn build_example(package: &str, example: &str) -> PathBuf {
    let folder = compile(package, "--example", example);
    folder.join("examples").join(example)
}

/// Builds something of ours, and says in which folder of Cargo's.
fn compile(package: &str, kind: &str, program: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "-p", package, kind, program]);
    // Build scripts look at what Cargo says of our own package, and think that it changed.
    let ours = |name: &OsString| {
        name.as_bytes().starts_with(b"CARGO_PKG_")
            || name.as_bytes().starts_with(b"CARGO_MANIFEST_")
    };
    for name in std::env::vars_os().map(|(name, _)| name).filter(ours) {
        build.env_remove(name);
    }
    let built = build.current_dir(paths::repository()).status().unwrap();
    assert!(built.success(), "{program} does not build");
    paths::target().join("debug")
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// It did what it should, and said nothing against it.
#[track_caller]
pub(crate) fn succeeded(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    assert_eq!(stderr(output), "");
    stdout(output)
}

/// It failed with our own code; gives its words.
#[track_caller]
pub(crate) fn failed(output: &Output) -> &str {
    assert_eq!(
        output.status.code(),
        Some(OURS),
        "{}{}",
        stdout(output),
        stderr(output)
    );
    stderr(output)
}
