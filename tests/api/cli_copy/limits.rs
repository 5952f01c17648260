//! What is not copied: too much, of another kind, what cannot be read, without a flag for it.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, chown, symlink},
        net::UnixListener,
    },
    path::Path,
};

use nix::{
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::mkfifo,
};

use super::{events, finish, spawn};
use crate::cli_files::{Ends, failed, names, stderr, succeeded};

/// Both ways with the same flags: the ends see one file system.
async fn both(
    ends: &Ends,
    flags: &[&str],
    from: &str,
    to: [&str; 2],
    check: impl Fn(&std::process::Output, &Path),
) {
    for (verb, to) in ["push", "pull"].into_iter().zip(to) {
        let (here, there) = (ends.path(from), ends.path(to));
        let mut command = ends.cli([verb]);
        command.args(flags);
        match verb {
            "push" => command.arg(&here).arg(ends.place(&there)),
            _ => command.arg(ends.place(&here)).arg(&there),
        };
        let output = finish(spawn(command)).await;
        check(&output, &there);
    }
}

#[tokio::test]
async fn a_directory_needs_its_flag() {
    let ends = Ends::start();
    ends.mkdir("tree");
    both(&ends, &[], "tree", ["a", "b"], |output, there| {
        let words = failed(output);
        assert!(
            words.contains("tree") && words.contains("it is a directory"),
            "{words}"
        );
        assert!(!there.exists());
    })
    .await;
}

#[tokio::test]
async fn a_tree_that_is_tried_again_comes_to_the_same_place() {
    let ends = Ends::start();
    ends.mkdir("tree");
    ends.write("tree/file", "text");
    for _ in 0..2 {
        let flags = ["-r", "-T"];
        both(&ends, &flags, "tree", ["a", "b"], |output, there| {
            succeeded(output);
            assert_eq!(names(there), ["file"]);
        })
        .await;
    }
}

#[tokio::test]
async fn a_copy_ends_at_its_limits() {
    let ends = Ends::start();
    ends.mkdir("tree");
    // More than are copied at once.
    const FILES: usize = 1_000;
    for number in 0..FILES {
        ends.write(format!("tree/{number}"), [0; 1000]);
    }
    for (flags, what, round) in [
        (
            ["-r", "--max-entries", "10"],
            "entries is over the limit of 10",
            0,
        ),
        (
            ["-r", "--max-bytes", "5000"],
            "bytes is over the limit of 5000",
            1,
        ),
    ] {
        let to = [format!("a{round}"), format!("b{round}")];
        both(&ends, &flags, "tree", [&to[0], &to[1]], |output, there| {
            let words = failed(output);
            assert!(words.contains(what), "{words}");
            assert!(names(there).len() < FILES);
        })
        .await;
    }
    let enough = ["-r", "--max-entries", "1001", "--max-bytes", "1000000"];
    both(&ends, &enough, "tree", ["c", "d"], |output, there| {
        succeeded(output);
        assert_eq!(names(there).len(), FILES);
    })
    .await;
}

#[tokio::test]
async fn special_files_are_reported_and_not_read() {
    let ends = Ends::start();
    ends.mkdir("tree");
    ends.write("tree/file", "text");
    mkfifo(&ends.path("tree/pipe"), Mode::S_IRUSR).unwrap();
    let _socket = UnixListener::bind(ends.path("tree/socket")).unwrap();
    let mut special = vec!["pipe", "socket"];
    if nix::unistd::geteuid().is_root() {
        // Endless if it is read: /dev/zero.
        mknod(
            &ends.path("tree/device"),
            SFlag::S_IFCHR,
            Mode::S_IRUSR,
            makedev(1, 5),
        )
        .unwrap();
        special.insert(0, "device");
    }
    both(&ends, &["-r"], "tree", ["a", "b"], |output, there| {
        assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
        let mut lines: Vec<&str> = stderr(output).lines().collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), special.len(), "{lines:?}");
        for (line, name) in lines.iter().zip(&special) {
            let words = format!("tree/{name}: it is not a regular file");
            assert!(line.contains("skipped") && line.ends_with(&words), "{line}");
        }
        assert_eq!(names(there), ["file"]);
    })
    .await;
    for name in &special {
        both(
            &ends,
            &[],
            &format!("tree/{name}"),
            ["c", "d"],
            |output, there| {
                assert!(
                    failed(output).contains("it is not a regular file"),
                    "{}",
                    stderr(output)
                );
                assert!(!there.exists());
            },
        )
        .await;
    }
    both(&ends, &["-rq"], "tree", ["g", "h"], |output, there| {
        assert_eq!((output.status.code(), stderr(output)), (Some(0), ""));
        assert_eq!(names(there), ["file"]);
    })
    .await;
    both(&ends, &["-r", "--json"], "tree", ["e", "f"], |output, _| {
        assert_eq!((output.status.code(), stderr(output)), (Some(0), ""));
        let skipped = events(output)
            .into_iter()
            .filter(|event| event["event"] == "skipped");
        assert_eq!(skipped.count(), special.len());
    })
    .await;
}

#[tokio::test]
async fn what_fails_is_named_and_the_rest_is_copied() {
    let ends = Ends::start();
    ends.mkdir("tree");
    for name in ["a", "b\u{1b}[31m", "c"] {
        ends.write(format!("tree/{name}"), name);
    }
    for to in ["x", "y"] {
        // In the way of a file.
        ends.mkdir(format!("{to}/tree/b\u{1b}[31m/below"));
    }
    both(&ends, &["-r"], "tree", ["x", "y"], |output, there| {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
        assert!(
            stderr(output).contains(r"tree/b\x1b[31m: "),
            "{}",
            stderr(output)
        );
        assert_eq!(stderr(output).lines().count(), 1, "{}", stderr(output));
        assert_eq!(names(&there.join("tree")), ["a", "b\u{1b}[31m", "c"]);
        assert_eq!(fs::read(there.join("tree/c")).unwrap(), b"c");
    })
    .await;
    both(&ends, &["-r", "--json"], "tree", ["x", "y"], |output, _| {
        assert_eq!((output.status.code(), stderr(output)), (Some(1), ""));
        let events = events(output);
        let failed: Vec<_> = events
            .iter()
            .filter(|event| event["event"] == "failed")
            .collect();
        assert_eq!(failed.len(), 1);
        assert!(!failed[0]["error"].as_str().unwrap().is_empty());
        let summary = events.last().unwrap();
        assert_eq!(
            (&summary["files"], &summary["failed"]),
            (&2.into(), &1.into())
        );
    })
    .await;
}

#[tokio::test]
async fn several_sources_need_a_directory() {
    let ends = Ends::start();
    let sources = ["one", "two"].map(|name| ends.write(name, name));
    ends.mkdir("into");
    ends.mkdir("back");
    let push = |to: &str| {
        let mut command = ends.cli(["push"]);
        command.args(&sources).arg(ends.place(ends.path(to)));
        finish(spawn(command))
    };
    let pull = |to: &str| {
        let mut command = ends.cli(["pull"]);
        command.args(sources.iter().map(|source| ends.place(source)));
        command.arg(ends.path(to));
        finish(spawn(command))
    };
    succeeded(&push("into").await);
    succeeded(&pull("back").await);
    for folder in ["into", "back"] {
        assert_eq!(names(&ends.path(folder)), ["one", "two"]);
        assert_eq!(fs::read(ends.path(folder).join("two")).unwrap(), b"two");
    }
    let before = ends.names();
    for to in ["one", "missing"] {
        assert!(failed(&push(to).await).contains("directory"));
        assert!(failed(&pull(to).await).contains("directory"));
    }
    assert_eq!(ends.names(), before);
    assert_eq!(fs::read(ends.path("one")).unwrap(), b"one");
    // One that is missing does not keep the other one.
    fs::remove_file(&sources[0]).unwrap();
    for output in [push("into").await, pull("back").await] {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("one: "), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn owners_are_copied_on_request() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can give files away"
    );
    let ends = Ends::start();
    ends.mkdir("tree");
    ends.write("tree/file", "x");
    symlink("file", ends.path("tree/link")).unwrap();
    let (user, group) = (Some(3_999_999), Some(3_999_998));
    chown(ends.path("tree"), user, group).unwrap();
    chown(ends.path("tree/file"), user, group).unwrap();
    std::os::unix::fs::lchown(ends.path("tree/link"), user, group).unwrap();
    let owners = |there: &Path| {
        ["", "file", "link"].map(|name| {
            let metadata = there.join(name).symlink_metadata().unwrap();
            (metadata.uid(), metadata.gid())
        })
    };
    both(&ends, &["-r", "-o"], "tree", ["a", "b"], |output, there| {
        succeeded(output);
        assert_eq!(owners(there), [(3_999_999, 3_999_998); 3]);
    })
    .await;
    both(&ends, &["-r"], "tree", ["c", "d"], |output, there| {
        succeeded(output);
        assert_eq!(owners(there), [(0, 0); 3]);
    })
    .await;
}
