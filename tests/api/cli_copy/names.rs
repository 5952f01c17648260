//! Names that nobody types.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt};

use super::{finish, spawn};
use crate::cli_files::{Ends, names, stderr, succeeded};

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

/// What `cp` says is "will not overwrite just-created".
#[tokio::test]
async fn of_sources_with_one_name_the_first_is_copied() {
    let ends = Ends::start();
    for folder in ["a/d", "b/d"] {
        ends.mkdir(folder);
    }
    for (file, content) in [
        ("a/x", "first"),
        ("b/x", "second"),
        ("a/d/both", "first"),
        ("a/d/one", "one"),
        ("b/d/both", "second"),
        ("b/d/other", "other"),
    ] {
        ends.write(file, content);
    }
    let far = |name: &str| ends.place(ends.path(name));
    let run = async |words: Vec<OsString>, target: &str, code| {
        let output = finish(spawn(ends.cli(words))).await;
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert_eq!(text.matches("just copied").count(), 1, "{text}");
        assert_eq!(fs::read(ends.path(target)).unwrap(), b"first");
    };
    let near = |name: &str| OsString::from(name);
    for to in [
        "push", "pull", "put", "get", "push-r", "pull-r", "push-dot", "pull-dot",
    ] {
        ends.mkdir(to);
    }
    run(
        vec!["push".into(), near("a/x"), near("b/x"), far("push")],
        "push/x",
        1,
    )
    .await;
    run(
        vec!["pull".into(), far("a/x"), far("b/x"), near("pull")],
        "pull/x",
        1,
    )
    .await;
    let words = [
        "push".into(),
        "-r".into(),
        near("a/d"),
        near("b/d"),
        far("push-r"),
    ];
    run(words.into(), "push-r/d/both", 1).await;
    let words = [
        "pull".into(),
        "-r".into(),
        far("a/d"),
        far("b/d"),
        near("pull-r"),
    ];
    run(words.into(), "pull-r/d/both", 1).await;
    let words = [
        "push".into(),
        "-r".into(),
        near("a/d/."),
        near("b/d/."),
        far("push-dot"),
    ];
    run(words.into(), "push-dot/both", 1).await;
    let words = [
        "pull".into(),
        "-r".into(),
        far("a/d/."),
        far("b/d/."),
        near("pull-dot"),
    ];
    run(words.into(), "pull-dot/both", 1).await;
    for to in ["push-r/d", "pull-r/d", "push-dot", "pull-dot"] {
        assert_eq!(names(&ends.path(to)), ["both", "one", "other"], "{to}");
    }
    for line in ["put */x put", "get */x get"] {
        let output = ends.batch(line);
        assert!(
            stderr(&output).contains("just copied"),
            "{}",
            stderr(&output)
        );
    }
    for to in ["put/x", "get/x"] {
        assert_eq!(fs::read(ends.path(to)).unwrap(), b"first", "{to}");
    }
}
