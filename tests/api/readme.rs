//! What README.md tells a reader to type and to write, done as it stands there: with this computer's
//! folders and socket in place of those of the reader.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Output},
};

use harness::{TestAgent, TestFolder, vm::paths};
use vsock_agent::Security;
use vsock_agent_client::{GUEST_FILES, IdentityFiles};

use crate::cli_files::{build, build_example, succeeded};

fn readme() -> String {
    fs::read_to_string(paths::repository().join("README.md")).unwrap()
}

/// The commands in the text that are indented and begin with `word`, in order.
fn commands(text: &str, word: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let lines = lines.filter(|line| line.starts_with(word));
    lines.map(str::to_owned).collect()
}

/// The part below a heading.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, below) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    below.split_once("\n## ").map_or(below, |(part, _)| part)
}

/// A reader with a home of its own.
struct Reader {
    home: TestFolder,
}

impl Reader {
    fn run<S: AsRef<OsStr>>(
        &self,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).env("HOME", self.home.path());
        for name in ["AGENT_CLI_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    /// Does a line of words without quotes, with `endpoint` where the README has `vsock:3`.
    fn types(&self, line: &str, endpoint: &str) -> String {
        let words = line.split_whitespace().skip(1);
        let words = words.map(|word| word.replace("vsock:3", endpoint));
        let output = self.run(&build("vsock-agent-cli", "agent-cli"), words);
        succeeded(&output).to_owned()
    }
}

#[test]
fn readme_commands_and_example_work_in_order() {
    let readme = readme();
    let reader = Reader {
        home: TestFolder::new("readme"),
    };
    let mut lines = commands(section(&readme, "Your own VM"), "agent-cli ").into_iter();
    let init = lines.next().unwrap();
    assert_eq!(init, "agent-cli identity init vm");
    let said = reader.types(&init, "");

    // The guest gets the three files that the command names.
    let identities = reader.home.path().join(".config/agent-cli/identity");
    let agent = TestAgent::start_with(|folder| {
        for name in GUEST_FILES {
            let file = said.lines().find(|line| line.ends_with(name)).unwrap();
            fs::copy(file.trim(), folder.join(name)).unwrap();
        }
        Security::Tls(folder.to_owned())
    });
    let files = IdentityFiles::find(&identities, "vm").unwrap();
    assert!(files.agent.starts_with(identities.join("vm")) && files.agent.exists());

    // `systemctl` may not be here; the others are done as they are.
    let (others, systemctl): (Vec<_>, Vec<_>) = lines.partition(|line| !line.contains("systemctl"));
    assert_eq!((others.len(), systemctl.len()), (2, 1), "{others:?}");
    for line in others {
        reader.types(&line, &agent.endpoint());
    }
    let uname = reader.types("agent-cli exec vm -- uname -a", "");
    assert!(uname.starts_with("Linux "), "{uname}");

    // The library's example, called as the README calls it.
    let (_, call) = readme.split_once("`cargo run --example exec -- ").unwrap();
    let (call, _) = call.split_once('`').unwrap();
    let home = reader.home.path().to_str().unwrap();
    let words = call.split_whitespace();
    let words = words.map(|word| {
        word.replace('~', home)
            .replace("vsock:3", &agent.endpoint())
    });
    let example = build_example("vsock-agent-client", "exec");
    assert_eq!(succeeded(&reader.run(&example, words)), uname);
}

#[test]
fn readme_quotes_the_example_exactly() {
    let path = paths::repository().join("host-client/examples/exec.rs");
    let example = fs::read_to_string(path).unwrap();
    let code: Vec<&str> = example
        .lines()
        .skip_while(|line| line.starts_with("//!") || line.is_empty())
        .collect();
    let readme = readme();
    let (_, shown) = readme.split_once("```rust\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(shown.trim_end(), code.join("\n"));
}
