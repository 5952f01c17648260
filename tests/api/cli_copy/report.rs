//! What programs hear: lines of JSON.

use std::{fs, os::unix::fs::symlink, process::Stdio};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use super::{events, finish, spawn};
use crate::cli_files::{Ends, name, stderr, stdout, succeeded};

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

#[tokio::test]
async fn copy_json_prints_one_object_per_line_and_a_summary() {
    let ends = Ends::start();
    ends.mkdir("tree/below");
    ends.write("tree/below/file", [1; 100_000]);
    ends.write(name(b"tree/\xff\n\x1b[31m\xc2\x9b"), [2; 5]);
    ends.write("tree/empty", "");
    symlink("below", ends.path("tree/link")).unwrap();
    mkfifo(&ends.path("tree/pipe"), Mode::S_IRUSR).unwrap();
    let mut push = ends.cli(["push", "-r", "--json", "tree"]);
    push.arg(ends.place(ends.path("far")));
    let mut pull = ends.cli(["pull", "-r", "--json"]);
    pull.arg(ends.place(ends.path("tree"))).arg("near");
    for command in [push, pull] {
        let output = finish(spawn(command)).await;
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
        assert!(!stdout(&output).contains('\u{9b}'));
        let events = events(&output);
        assert_eq!(
            events.last().unwrap(),
            &json!({
                "event": "summary", "files": 3, "directories": 2, "links": 1,
                "bytes": 100_005, "skipped": 1, "failed": 0,
            })
        );
        let (started, finished) = (of_kind(&events, "started"), of_kind(&events, "finished"));
        assert_eq!((started.len(), finished.len()), (3, 6), "{events:#?}");
        let odd = finished
            .iter()
            .find(|event| !event["name_bytes"].is_null())
            .unwrap();
        let bytes: Vec<u8> = serde_json::from_value(odd["name_bytes"].clone()).unwrap();
        assert!(bytes.ends_with(b"tree/\xff\n\x1b[31m\xc2\x9b"), "{bytes:?}");
        assert_eq!(odd["bytes"], 5);
        let large = started
            .iter()
            .find(|event| event["size"] == 100_000)
            .unwrap();
        assert_eq!(large["resumed_at"], 0);
        assert!(
            large["name"].as_str().unwrap().ends_with("tree/below/file"),
            "{large}"
        );
        assert!(large["name_bytes"].is_null());
        let skipped = of_kind(&events, "skipped");
        assert!(skipped[0]["name"].as_str().unwrap().ends_with("tree/pipe"));
        assert!(!skipped[0]["reason"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn copy_json_reports_total_failure_and_survives_a_closed_reader() {
    let ends = Ends::start();
    ends.write("file", "text");
    let mut push = ends.cli(["push", "--json", "missing"]);
    push.arg(ends.place(ends.path("there")));
    let output = finish(spawn(push)).await;
    assert!(crate::cli_files::failed(&output).contains("missing"));
    let events = events(&output);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (&events[0]["event"], &events[0]["name"]),
        (&json!("failed"), &json!("missing"))
    );
    let why = events[0]["error"].as_str().unwrap();
    assert!(why.contains("No such file"), "{why}");
    assert!(!why.contains("missing"), "{why}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut push = ends.cli(["push", "--json", "file"]);
    push.arg(ends.place(ends.path("there"))).stdout(writer);
    // Nobody reads; the file arrives.
    let ended = finish(push.stderr(std::process::Stdio::piped()).spawn().unwrap()).await;
    assert_eq!(fs::read(ends.path("there")).unwrap(), b"text");
    assert!(matches!(ended.status.code(), Some(0 | 141)), "{ended:?}");
}

#[tokio::test]
async fn copy_prints_no_progress_without_a_terminal() {
    let ends = Ends::start();
    ends.write("file", vec![7; 3_000_000]);
    for flags in [&[][..], &["--quiet"]] {
        let mut push = ends.cli(["push"]);
        push.args(flags)
            .arg("file")
            .arg(ends.place(ends.path("there")));
        assert_eq!(succeeded(&finish(spawn(push)).await), "");
        let mut pull = ends.cli(["pull"]);
        pull.args(flags)
            .arg(ends.place(ends.path("there")))
            .arg("back");
        assert_eq!(succeeded(&finish(spawn(pull)).await), "");
    }
}

#[tokio::test]
async fn copy_error_names_the_failing_path() {
    let ends = Ends::start();
    ends.write("file", "text");
    ends.mkdir("directory");
    for (source, target, said) in [
        ("file", "nowhere/file", "nowhere/file: cannot open"),
        ("file", "nowhere/", "nowhere/: the destination is not"),
        ("-", "directory", "directory: it is a directory"),
        ("missing", "there", "missing: "),
    ] {
        let mut push = ends.cli(["push", source]);
        push.arg(ends.place(ends.path(target))).stdin(Stdio::null());
        let output = finish(spawn(push)).await;
        let why = crate::cli_files::failed(&output);
        assert!(why.contains(said), "{source} to {target}: {why}");
    }
}

#[tokio::test]
async fn full_stdout_is_reported() {
    let ends = Ends::start();
    let file = ends.write("file", "text");
    for words in [&["ls"][..], &["stat"], &["cat"], &["pull"]] {
        let mut command = ends.cli(words);
        command.arg(ends.place(&file));
        if words == ["pull"] {
            command.arg("-");
        }
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        command.stdout(full).stderr(Stdio::piped());
        let output = finish(command.spawn().unwrap()).await;
        let why = crate::cli_files::failed(&output);
        assert!(
            why.contains("standard output: No space"),
            "{words:?}: {why}"
        );
    }
}

#[tokio::test]
async fn dash_among_several_sources_is_refused() {
    let ends = Ends::start();
    for name in ["-", "file"] {
        ends.write(name, "text");
    }
    let place = ends.mkdir("place");
    let mut push = ends.cli(["push", "-", "file"]);
    push.arg(ends.place(&place));
    let output = finish(spawn(push)).await;
    assert!(crate::cli_files::failed(&output).contains("./-"));
    assert!(crate::cli_files::names(&place).is_empty());
}
