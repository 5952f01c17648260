//! The commands, each copying one file onto a target.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use harness::{stock_server::OPENSSH_SERVER, vm::paths};

use super::cells::Cell;

/// The commands, first those of others.
pub(crate) const COMMANDS: &[&str] = &[
    "cp",
    "cp -r",
    "sftp put",
    "push",
    "push -",
    "push -r",
    "push --resume",
    "push --in-place",
    "pull",
    "pull -r",
    "pull --in-place",
    "put",
    "get",
    "copy",
    "edit",
];

/// Those for which it matters which server the guest has.
pub(crate) const INTO_THE_GUEST: &[&str] = &[
    "push",
    "push -",
    "push -r",
    "push --resume",
    "push --in-place",
    "put",
    "copy",
    "edit",
];

/// Longest that a command may take, in seconds.
const PATIENCE: &str = "60";

/// Who runs them, and with which agent.
pub(crate) struct Rig {
    endpoint: String,
    pub(crate) user: u32,
    program: PathBuf,
}

impl Rig {
    pub(crate) fn new(endpoint: &str, user: u32) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            user,
            program: agent_cli(),
        }
    }

    /// Runs a command, and says how it ended.
    pub(crate) fn run(&self, what: &str, cell: &Cell) -> &'static str {
        let (source, target) = (&cell.source, &cell.target);
        let content = |path: &Path| path.join(".").into_os_string();
        let mut input = None;
        let mut command = match what {
            "cp" => plain("cp", [source, target]),
            "cp -r" => plain(
                "cp",
                [
                    OsStr::new("-r"),
                    &content(&cell.tree),
                    cell.folder.as_os_str(),
                ],
            ),
            "sftp put" => {
                input = Some(format!("put {} {}", source.display(), target.display()));
                plain("sftp", ["-b", "-", "-D", OPENSSH_SERVER].map(OsStr::new))
            }
            "push" => self.cli(["push".into(), source.into(), self.place(target)]),
            "push -" => self.cli(["push".into(), "-".into(), self.place(target)]),
            "push -r" => {
                let folder = self.place(&cell.folder);
                self.cli(["push".into(), "-r".into(), content(&cell.tree), folder])
            }
            "push --resume" | "push --in-place" => {
                let option = what.split(' ').nth(1).unwrap().into();
                self.cli(["push".into(), option, source.into(), self.place(target)])
            }
            "pull" => self.cli(["pull".into(), self.place(source), target.into()]),
            "pull -r" => {
                let from = self.place(&cell.tree.join("."));
                self.cli(["pull".into(), "-r".into(), from, cell.folder.clone().into()])
            }
            "pull --in-place" => self.cli([
                "pull".into(),
                "--in-place".into(),
                self.place(source),
                target.into(),
            ]),
            "put" | "get" | "copy" => {
                input = Some(format!("{what} {} {}", source.display(), target.display()));
                self.cli(["sftp", "-b", "-", &self.endpoint].map(OsString::from))
            }
            "edit" => {
                let mut command = self.cli(["edit".into(), self.place(target)]);
                command
                    .env("VISUAL", format!("cp {}", source.display()))
                    .env("TMPDIR", &cell.temporary);
                command
            }
            other => panic!("{other}"),
        };
        command.uid(self.user).gid(self.user);
        command.stdin(match (what, &input) {
            ("push -", _) => File::open(source).unwrap().into(),
            (_, Some(text)) => lines(cell, text),
            _ => Stdio::null(),
        });
        let output = command.output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        if std::env::var_os("TARGETS_SHOW").is_some() {
            eprintln!("{what} {}: {} {words}", target.display(), output.status);
        }
        assert!(!words.contains("panicked"), "{what}: {words}");
        match output.status.code() {
            Some(0) if words.contains("written in place") => "ok, tells that it writes in place",
            Some(0) => "ok",
            Some(124) => "does not end",
            _ => "fails",
        }
    }

    fn cli<const N: usize>(&self, arguments: [OsString; N]) -> Command {
        let mut command = plain(&self.program, ["--plain"].map(OsStr::new));
        command.args(arguments);
        command
            .env("AGENT_CLI_CONFIG", "/nowhere")
            .env("HOME", "/nowhere");
        command
    }

    fn place(&self, path: &Path) -> OsString {
        format!("{}:{}", self.endpoint, path.display()).into()
    }
}

fn plain<const N: usize>(program: impl AsRef<OsStr>, arguments: [impl AsRef<OsStr>; N]) -> Command {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE).arg(program).args(arguments);
    command.current_dir("/");
    command
}

/// Lines for standard input.
fn lines(cell: &Cell, text: &str) -> Stdio {
    let path = cell.tree.parent().unwrap().join("lines");
    fs::write(&path, format!("{text}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    File::open(path).unwrap().into()
}

/// `agent-cli`, built beside the program that runs this.
fn agent_cli() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args([
        "build",
        "--quiet",
        "-p",
        "vsock-agent-cli",
        "--bin",
        "agent-cli",
    ]);
    for name in std::env::vars_os().map(|(name, _)| name) {
        // Build scripts look at what Cargo says of our own package, and think that it changed.
        if name.as_encoded_bytes().starts_with(b"CARGO_PKG_")
            || name.as_encoded_bytes().starts_with(b"CARGO_MANIFEST_")
        {
            build.env_remove(name);
        }
    }
    let built = build.current_dir(paths::repository()).status().unwrap();
    assert!(built.success(), "agent-cli does not build");
    paths::target().join("debug/agent-cli")
}
