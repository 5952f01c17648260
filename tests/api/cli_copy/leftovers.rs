//! What earlier copies left goes with the next one, whatever there is to do.

use std::{fs, os::unix::fs::symlink};

use super::{finish, spawn};
use crate::cli_files::{Ends, names, stderr};

const DIGITS: &str = "0123456789abcdef";

/// A tree, and a place where a copy of it was killed.
fn scene() -> Ends {
    let ends = Ends::start();
    for folder in ["tree", "place/tree"] {
        ends.mkdir(folder);
        ends.write(format!("{folder}/file"), "text");
        symlink("file", ends.path(format!("{folder}/link"))).unwrap();
    }
    // So that it looks complete.
    let modified = ends
        .path("tree/file")
        .metadata()
        .unwrap()
        .modified()
        .unwrap();
    let copied = fs::File::open(ends.path("place/tree/file")).unwrap();
    copied.set_modified(modified).unwrap();
    ends.write(format!("place/tree/.file.{DIGITS}.part"), "te");
    symlink("file", ends.path(format!("place/tree/.link.{DIGITS}.part"))).unwrap();
    ends
}

async fn copy(ends: &Ends, words: &[&str]) {
    let mut command = ends.cli(words);
    match words[0] {
        "push" => command.arg("tree").arg(ends.place(ends.path("place"))),
        _ => command.arg(ends.place(ends.path("tree"))).arg("place"),
    };
    let output = finish(spawn(command)).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        names(&ends.path("place/tree")),
        ["file", "link"],
        "{words:?}"
    );
}

#[tokio::test]
async fn next_copy_removes_leftover_parts_of_files_and_links() {
    for verb in ["push", "pull"] {
        copy(&scene(), &[verb, "-r"]).await;
    }
}

#[tokio::test]
async fn next_copy_removes_leftover_parts_of_complete_files() {
    for verb in ["push", "pull"] {
        let ends = scene();
        copy(&ends, &[verb, "-r", "--resume"]).await;
        assert_eq!(fs::read(ends.path("place/tree/file")).unwrap(), b"text");
    }
}

#[tokio::test]
async fn next_copy_keeps_files_that_are_not_parts() {
    let others = [
        ".file.part".to_owned(),
        format!(".file.{DIGITS}"),
        format!("file.{DIGITS}.part"),
        format!(".other.{DIGITS}.part"),
        format!(".file.{}.part", DIGITS.to_uppercase()),
    ];
    for verb in ["push", "pull"] {
        let ends = scene();
        for other in &others {
            ends.write(format!("place/tree/{other}"), "kept");
        }
        let mut command = ends.cli([verb]);
        match verb {
            "push" => command
                .arg("tree/file")
                .arg(ends.place(ends.path("place/tree/file"))),
            _ => command
                .arg(ends.place(ends.path("tree/file")))
                .arg("place/tree"),
        };
        let output = finish(spawn(command)).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        for other in &others {
            assert_eq!(
                fs::read(ends.path("place/tree").join(other)).unwrap(),
                b"kept"
            );
        }
        assert!(
            !ends
                .path(format!("place/tree/.file.{DIGITS}.part"))
                .exists()
        );
    }
}

#[tokio::test]
async fn failed_push_removes_its_part_before_it_exits() {
    let ends = Ends::start();
    let place = ends.mkdir("place");
    let source = ends.write("source", vec![7; 16 * 1024 * 1024]);
    for round in 0..5 {
        // Much is still under way when it fails.
        let mut command = ends.cli(["push", "--max-bytes", "3000000", "-"]);
        command
            .arg(ends.place(place.join("target")))
            .stdin(fs::File::open(&source).unwrap());
        let output = finish(spawn(command)).await;
        assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
        assert!(names(&place).is_empty(), "{round}: {:?}", names(&place));
    }
}
