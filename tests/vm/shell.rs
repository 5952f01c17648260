//! A person at a terminal.
//!
//! What is typed comes back as echo, so every word that is waited for is typed with a pair of
//! quotes in it.

mod terminal;

use std::fs;

use harness::{TestVm, eventually};
use tokio::process::Command;

use self::terminal::Terminal;
use crate::{PATIENCE, finish, shared};

/// The end of the prompt of the guest's shell, for root.
const PROMPT: &str = "# ";

const CTRL_C: &str = "\x03";

#[tokio::test]
async fn shell_window_size_follows_a_resize() {
    let vm = shared().await;
    let mut terminal = Terminal::open(&vm.cli(["shell", vm.name()]), (24, 80));
    terminal.expect(PROMPT).await;
    terminal.type_line("stty size");
    terminal.expect("24 80").await;
    terminal
        .type_line("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo foll''owed");
    terminal.resize((50, 132));
    terminal.expect("followed").await;
}

#[tokio::test]
async fn ctrl_c_in_a_shell_ends_only_the_foreground_job() {
    let vm = shared().await;
    let mut terminal = Terminal::open(&vm.cli(["shell", vm.name()]), (24, 80));
    terminal.expect(PROMPT).await;
    terminal.type_line("sleep 60071");
    assert!(eventually(PATIENCE, async || runs(vm, "sleep 60071").await).await);
    terminal.type_keys(CTRL_C);
    terminal.expect(PROMPT).await;
    terminal.type_line("echo al''ive");
    terminal.expect("alive").await;
    assert!(!runs(vm, "sleep 60071").await);
}

#[tokio::test]
async fn terminal_settings_are_restored_after_a_shell() {
    let vm = shared().await;
    let [before, after] = ["stty-before", "stty-after"].map(|name| vm.scratch().join(name));
    let shell = vm.cli(["shell", vm.name()]);
    let mut host = Command::new("sh");
    host.envs(
        shell
            .as_std()
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    host.env("PS1", "host> ");
    let mut terminal = Terminal::open(&host, (24, 80));
    terminal.expect("host> ").await;
    let program = shell.as_std().get_program().display();
    let (before_file, name) = (before.display(), vm.name());
    terminal.type_line(&format!("stty -g >{before_file}; {program} shell {name}"));
    terminal.expect(PROMPT).await;
    terminal.type_line("exit 5");
    terminal.expect("host> ").await;
    terminal.type_line(&format!(
        "echo co''de $?; stty -g >{}; echo do''ne",
        after.display()
    ));
    terminal.expect("code 5").await;
    terminal.expect("done").await;
    assert_eq!(
        fs::read_to_string(before).unwrap(),
        fs::read_to_string(after).unwrap()
    );
}

async fn runs(vm: &TestVm, command: &str) -> bool {
    let processes = finish(vm.exec(["ps", "-o", "args"])).await;
    String::from_utf8_lossy(&processes.stdout)
        .lines()
        .any(|line| line == command)
}
