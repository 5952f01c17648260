//! `-`: standard input and output.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{content, finish, spawn};
use crate::cli_files::{Ends, failed, feed, names, succeeded};

#[tokio::test]
async fn push_and_pull_accept_dash_for_stdio() {
    let ends = Ends::start();
    let place = ends.mkdir("place");
    for bytes in [0, 1, 70_000, 3_000_000] {
        let content = content(4, bytes);
        let there = ends.place(place.join("file"));
        let mut push = ends.cli(["push", "-"]);
        succeeded(&feed(push.arg(&there), &content));
        assert_eq!(names(&place), ["file"]);
        let mut pull = ends.cli(["pull"]);
        pull.arg(&there).arg("-");
        // Not `finish`: this one says a lot.
        let output = pull.output().unwrap();
        assert!(output.stdout == content, "{bytes}: {}", output.stdout.len());
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
        assert!(fs::read(place.join("file")).unwrap() == content);
    }
}

#[tokio::test]
async fn pull_to_stdout_concatenates_files() {
    let ends = Ends::start();
    let places = ["one", "two"].map(|name| ends.place(ends.write(name, name)));
    let mut pull = ends.cli(["pull"]);
    let output = finish(spawn({
        pull.args(&places).arg("-");
        pull
    }))
    .await;
    assert_eq!(succeeded(&output), "onetwo");
}

#[tokio::test]
async fn push_from_stdin_keeps_the_mode_and_removes_leftovers() {
    let ends = Ends::start();
    let place = ends.mkdir("place");
    let file = ends.write("place/file", "old");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    ends.write("place/.file.0123456789abcdef.part", "left");
    let mut push = ends.cli(["push", "-"]);
    succeeded(&feed(push.arg(ends.place(&file)), b"new"));
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(
        file.metadata().unwrap().permissions().mode() & 0o7777,
        0o640
    );
    assert_eq!(names(&place), ["file"]);
}

#[tokio::test]
async fn push_from_stdin_needs_a_file_target() {
    let ends = Ends::start();
    ends.mkdir("place");
    for to in ["place", "missing/file"] {
        let mut push = ends.cli(["push", "-"]);
        let output = feed(push.arg(ends.place(ends.path(to))), b"x");
        assert!(!failed(&output).is_empty());
    }
    assert_eq!(
        (ends.names().len(), names(&ends.path("place")).len()),
        (1, 0)
    );
    let mut pull = ends.cli(["pull", "--json"]);
    pull.arg(ends.place(ends.write("file", "x"))).arg("-");
    assert!(failed(&finish(spawn(pull)).await).contains("JSON"));
    let mut pull = ends.cli(["pull", "-r"]);
    pull.arg(ends.place(ends.path("place"))).arg("-");
    assert!(failed(&finish(spawn(pull)).await).contains("it is a directory"));
}
