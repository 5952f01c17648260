//! Names that nobody types.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt};

use super::{finish, spawn};
use crate::cli_files::{Ends, names, succeeded};

fn odd_names() -> Vec<OsString> {
    let names: [&[u8]; 7] = [
        b"new\nline",
        b"-r",
        b"--",
        &[0xff; 255],
        b"\x1b]0;title\x07",
        b"a:b",
        b" ",
    ];
    names.map(|name| OsString::from_vec(name.to_vec())).into()
}

#[tokio::test]
async fn odd_names_are_sources_and_destinations() {
    let ends = Ends::start();
    for folder in ["in", "out"] {
        ends.mkdir(folder);
    }
    for odd in odd_names() {
        ends.write(&odd, odd.as_encoded_bytes());
        let there = ends.path("in").join(&odd);
        let mut push = ends.cli(["push", "--"]);
        push.arg(&odd).arg(ends.place(&there));
        succeeded(&finish(spawn(push)).await);
        let mut pull = ends.cli(["pull", "--"]);
        pull.arg(ends.place(&there)).arg("out/");
        succeeded(&finish(spawn(pull)).await);
        fs::remove_file(&there).unwrap();
        let back = ends.path("out").join(&odd);
        assert_eq!(fs::read(&back).unwrap(), odd.as_encoded_bytes());
        fs::remove_file(back).unwrap();
        let mut pull = ends.cli(["pull", "--"]);
        // Into a name in the working directory.
        pull.arg(ends.place(ends.path(&odd)));
        let mut to = odd.clone();
        if to.len() < 255 {
            to.push("2");
        }
        pull.arg(&to);
        succeeded(&finish(spawn(pull)).await);
        assert_eq!(fs::read(ends.path(&to)).unwrap(), odd.as_encoded_bytes());
    }
    assert!(names(&ends.path("in")).is_empty() && names(&ends.path("out")).is_empty());
}

#[tokio::test]
async fn odd_names_are_the_same_in_a_tree() {
    let ends = Ends::start();
    ends.mkdir("tree");
    for odd in odd_names() {
        let folder = ends.mkdir(ends.path("tree").join(&odd));
        for below in odd_names() {
            fs::write(folder.join(&below), below.as_encoded_bytes()).unwrap();
        }
    }
    let mut push = ends.cli(["push", "-r"]);
    push.arg("tree").arg(ends.place(ends.path("far")));
    succeeded(&finish(spawn(push)).await);
    let mut pull = ends.cli(["pull", "-r"]);
    pull.arg(ends.place(ends.path("far"))).arg("near");
    succeeded(&finish(spawn(pull)).await);
    let mut expected = odd_names();
    expected.sort();
    for root in ["far", "near"] {
        assert_eq!(names(&ends.path(root)), expected);
        for odd in &expected {
            let folder = ends.path(root).join(odd);
            assert_eq!(names(&folder), expected);
            for below in &expected {
                assert_eq!(
                    fs::read(folder.join(below)).unwrap(),
                    below.as_encoded_bytes()
                );
            }
        }
    }
}
