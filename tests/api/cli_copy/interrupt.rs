//! A terminal's Ctrl-C, and what a terminal shows.

use std::{fs, io::Read, os::unix::process::ExitStatusExt, path::Path, process::Command, thread};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use super::{
    MIB, after, content, finish,
    gate::{Direction, Gate},
    part_of, resumed_at, spawn,
};
use crate::cli_files::{Ends, cli, names, stderr, stdout};

const SIZE: u64 = 16 * MIB;

/// Interrupts a copy in its middle.
async fn interrupt(direction: Direction, signal: Signal) {
    let ends = Ends::start();
    let source = ends.write("source", content(2, SIZE));
    let place = ends.mkdir("place");
    let target = ends.write("place/target", "old");
    let foreign = ".other.0123456789abcdef.part";
    ends.write(format!("place/{foreign}"), "");
    let gate = Gate::new(
        ends.folder.path(),
        &ends.agent.socket(),
        direction,
        SIZE / 2,
    );
    let (source, target) = (source.display(), target.display());
    let words = match direction {
        Direction::In => [
            "push".to_owned(),
            source.to_string(),
            format!("{}:{target}", gate.endpoint()),
        ],
        Direction::Out => [
            "pull".to_owned(),
            format!("{}:{source}", gate.endpoint()),
            target.to_string(),
        ],
    };
    let client = spawn(ends.cli(words));
    let pid = Pid::from_raw(i32::try_from(client.id()).unwrap());
    fs::remove_file(ends.path(format!("place/{foreign}"))).unwrap();
    part_of(&place, SIZE / 2 - MIB).await;
    ends.write(format!("place/{foreign}"), "");
    kill(pid, signal).unwrap();
    gate.open();
    let output = finish(client).await;
    let code = 128 + signal as i32;
    assert_eq!(
        output.status.code(),
        Some(code),
        "{:?}",
        output.status.signal()
    );
    assert_eq!((stdout(&output), stderr(&output)), ("", ""));
    assert_eq!(names(&place), [foreign, "target"]);
    assert_eq!(fs::read(place.join("target")).unwrap(), b"old");
}

#[tokio::test]
async fn an_interrupted_push_removes_what_it_wrote() {
    interrupt(Direction::In, Signal::SIGINT).await;
}

#[tokio::test]
async fn an_interrupted_pull_removes_what_it_wrote() {
    interrupt(Direction::Out, Signal::SIGINT).await;
}

#[tokio::test]
async fn a_terminated_push_removes_what_it_wrote() {
    interrupt(Direction::In, Signal::SIGTERM).await;
}

#[tokio::test]
async fn a_copy_whose_terminal_goes_away_removes_what_it_wrote() {
    interrupt(Direction::In, Signal::SIGHUP).await;
    interrupt(Direction::Out, Signal::SIGHUP).await;
}

/// Interrupts a copy that may be resumed, and resumes it.
async fn interrupt_and_resume(direction: Direction) {
    let ends = Ends::start();
    let source = ends.write("source", content(2, SIZE));
    let place = ends.mkdir("place");
    let target = ends.write("place/target", "old");
    let gate = Gate::new(
        ends.folder.path(),
        &ends.agent.socket(),
        direction,
        SIZE / 2,
    );
    let (from, to) = (source.display(), target.display());
    let words = |endpoint: &str| match direction {
        Direction::In => ["push", "--resume", "--json"]
            .map(str::to_owned)
            .into_iter()
            .chain([from.to_string(), format!("{endpoint}:{to}")]),
        Direction::Out => ["pull", "--resume", "--json"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("{endpoint}:{from}"), to.to_string()]),
    };
    let client = spawn(ends.cli(words(&gate.endpoint().to_string())));
    let pid = Pid::from_raw(i32::try_from(client.id()).unwrap());
    part_of(&place, SIZE / 2 - MIB).await;
    kill(pid, Signal::SIGINT).unwrap();
    let output = finish(client).await;
    gate.open();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(names(&place).len(), 2, "{:?}", names(&place));
    let again = ends.cli(words(&format!("unix:{}", ends.agent.socket().display())));
    let output = finish(spawn(again)).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(resumed_at(&output) > 0, "{}", stdout(&output));
    assert!(fs::read(&target).unwrap() == fs::read(&source).unwrap());
    assert_eq!(names(&place), ["target"]);
}

#[tokio::test]
async fn an_interrupted_push_that_resumes_goes_on() {
    interrupt_and_resume(Direction::In).await;
}

#[tokio::test]
async fn an_interrupted_pull_that_resumes_goes_on() {
    interrupt_and_resume(Direction::Out).await;
}

/// Interrupts a copy of many files, here and there.
async fn interrupt_many(direction: Direction) {
    let ends = Ends::start();
    ends.mkdir("tree");
    for number in 0..3_000 {
        ends.write(format!("tree/{number}"), content(number, 3_000));
    }
    let tree = ends.path("tree");
    for limit in [1, 2, 3, 5, 8] {
        let place = ends.mkdir(format!("place-{limit}"));
        let gate = Gate::new(
            ends.folder.path(),
            &ends.agent.socket(),
            direction,
            limit * MIB,
        );
        let far = |path: &Path| format!("{}:{}", gate.endpoint(), path.display());
        let near = |path: &Path| path.display().to_string();
        let (verb, from, to) = match direction {
            Direction::In => ("push", near(&tree), far(&place)),
            Direction::Out => ("pull", far(&tree), near(&place)),
        };
        let client = spawn(ends.cli([verb, "-r", "--fsync", &from, &to]));
        let begun = async || place.join("tree").is_dir() && !names(&place.join("tree")).is_empty();
        assert!(harness::eventually(super::PATIENCE, begun).await);
        kill(
            Pid::from_raw(i32::try_from(client.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        gate.open();
        let output = finish(client).await;
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        for name in names(&place.join("tree")) {
            let read = fs::read(place.join("tree").join(&name)).unwrap();
            assert!(!name.as_encoded_bytes().ends_with(b".part"), "{name:?}");
            assert!(read == fs::read(tree.join(&name)).unwrap(), "{name:?}");
        }
    }
}

#[tokio::test]
async fn an_interrupted_push_of_many_files_leaves_no_part_of_any() {
    interrupt_many(Direction::In).await;
}

// Local files are written by threads of their own, which must not be cut off.
#[tokio::test]
async fn an_interrupted_pull_of_many_files_leaves_no_part_of_any() {
    interrupt_many(Direction::Out).await;
}

/// Commands that write one file, besides `push` and `pull`.
#[derive(Clone, Copy)]
enum Writer {
    Get,
    Put,
    Edit,
}

impl Writer {
    const fn direction(self) -> Direction {
        match self {
            Self::Get => Direction::Out,
            Self::Put | Self::Edit => Direction::In,
        }
    }

    /// The command that writes the content of `source` to `target`.
    fn command(self, ends: &Ends, gate: &Gate, source: &Path, target: &Path) -> Command {
        let (source, target) = (source.display(), target.display());
        let endpoint = gate.endpoint().to_string();
        let line = match self {
            Self::Get => format!("get {source} {target}"),
            Self::Put => format!("put {source} {target}"),
            Self::Edit => {
                let mut command = ends.cli(["edit", &format!("{endpoint}:{target}")]);
                command.env_remove("VISUAL");
                command.env("TMPDIR", ends.agent.folder());
                command.env("EDITOR", format!("cp '{source}'"));
                return command;
            }
        };
        let batch = ends.write("batch", line);
        ends.cli(["sftp", "-b", batch.to_str().unwrap(), &endpoint])
    }
}

/// Sends a signal to a command in the middle of its writing, which may be ignored since its start.
async fn signalled(writer: Writer, signal: Signal, is_ignored: bool) {
    let ends = Ends::start();
    let source = ends.write("source", content(2, SIZE));
    let place = ends.mkdir("place");
    let target = ends.write("place/target", "old");
    let gate = Gate::new(
        ends.folder.path(),
        &ends.agent.socket(),
        writer.direction(),
        SIZE / 2,
    );
    let command = writer.command(&ends, &gate, &source, &target);
    let client = if is_ignored {
        spawn(after("trap '' HUP INT TERM", &command))
    } else {
        spawn(command)
    };
    part_of(&place, SIZE / 2 - MIB).await;
    kill(Pid::from_raw(i32::try_from(client.id()).unwrap()), signal).unwrap();
    gate.open();
    let output = finish(client).await;
    let (code, written) = if is_ignored {
        (0, fs::read(source).unwrap())
    } else {
        (128 + signal as i32, b"old".to_vec())
    };
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(names(&place), ["target"]);
    assert!(fs::read(target).unwrap() == written);
    if matches!(writer, Writer::Edit) && !is_ignored {
        assert!(stderr(&output).contains("are kept in"), "{output:?}");
    }
}

#[tokio::test]
async fn a_get_that_is_told_to_end_leaves_nothing_half() {
    signalled(Writer::Get, Signal::SIGTERM, false).await;
    signalled(Writer::Get, Signal::SIGHUP, false).await;
}

#[tokio::test]
async fn a_put_that_is_told_to_end_leaves_nothing_half() {
    signalled(Writer::Put, Signal::SIGTERM, false).await;
    signalled(Writer::Put, Signal::SIGHUP, false).await;
    signalled(Writer::Put, Signal::SIGINT, false).await;
}

#[tokio::test]
async fn an_edit_that_is_told_to_end_leaves_nothing_half_but_the_draft() {
    signalled(Writer::Edit, Signal::SIGTERM, false).await;
    signalled(Writer::Edit, Signal::SIGHUP, false).await;
    signalled(Writer::Edit, Signal::SIGINT, false).await;
}

#[tokio::test]
async fn signals_that_are_ignored_at_the_start_end_nothing() {
    for writer in [Writer::Get, Writer::Put, Writer::Edit] {
        signalled(writer, Signal::SIGINT, true).await;
    }
    signalled(Writer::Edit, Signal::SIGHUP, true).await;
}

/// What a terminal shows of a command to its end.
fn on_terminal(
    ends: &Ends,
    words: &[&str],
    while_it_runs: impl FnOnce(&mut dyn FnMut() -> String),
) -> String {
    let size = PtySize {
        rows: 24,
        cols: 100,
        ..PtySize::default()
    };
    let terminal = native_pty_system().openpty(size).unwrap();
    let mut command = CommandBuilder::new(cli());
    command.arg("--plain");
    command.args(words);
    command.cwd(ends.folder.path());
    command.env("TERM", "xterm");
    command.env("AGENT_CLI_CONFIG", ends.agent.folder().join("no-config"));
    let mut child = terminal.slave.spawn_command(command).unwrap();
    drop(terminal.slave);
    let mut reader = terminal.master.try_clone_reader().unwrap();
    let (sender, screen) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut all = String::new();
    let mut more = || {
        let bytes = screen
            .recv_timeout(super::PATIENCE)
            .expect("something on the screen");
        all.push_str(&String::from_utf8_lossy(&bytes));
        all.clone()
    };
    while_it_runs(&mut more);
    assert!(child.wait().unwrap().success());
    drop(terminal.master);
    all.extend(
        screen
            .iter()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    );
    all
}

/// Copies through a gate that opens when the screen is as `shows` says.
fn watched(flags: &[&str], shows: impl Fn(&str) -> bool) -> String {
    let ends = Ends::start();
    let source = ends.write("s\u{1b}[31m", content(3, SIZE));
    let gate = Gate::new(
        ends.folder.path(),
        &ends.agent.socket(),
        Direction::In,
        SIZE / 2,
    );
    let to = format!("{}:{}", gate.endpoint(), ends.path("target").display());
    let words = [&["push"], flags, &[source.to_str().unwrap(), &to]].concat();
    let screen = on_terminal(&ends, &words, |more| {
        let mut text = String::new();
        while !shows(&text) {
            text = more();
        }
        gate.open();
    });
    assert!(fs::read(ends.path("target")).unwrap() == fs::read(source).unwrap());
    screen
}

#[test]
fn a_terminal_shows_how_far_it_is() {
    let screen = watched(&[], |text| {
        text.contains("16.00 MiB") && text.contains("left")
    });
    assert!(screen.contains("/s"), "no rate: {screen:?}");
    assert!(screen.contains(r"s\x1b[31m"), "no name: {screen:?}");
    assert!(!screen.contains("s\u{1b}[31m"), "{screen:?}");
}

#[test]
fn a_quiet_copy_shows_nothing() {
    assert_eq!(watched(&["--quiet"], |_| true), "");
    assert_eq!(watched(&["-q", "--no-fsync"], |_| true), "");
}

#[test]
fn lines_for_programs_have_no_bar_between_them() {
    let screen = watched(&["--json"], |_| true);
    let events: Vec<serde_json::Value> = screen
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["started", "finished", "summary"]);
}
