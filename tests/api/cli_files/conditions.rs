//! What needs the agent's extensions: conditions of a session, names of owners, room, copies inside
//! the guest.

use std::{fs, os::unix::fs::chown};

use serde_json::{Value, json};

use super::{Ends, failed, feed, stderr, stdout, succeeded};

#[test]
fn files_commands_accept_root_and_read_only() {
    let ends = Ends::start();
    ends.write("file", "text");
    let root = ends.folder.path().to_str().unwrap();
    let endpoint = ends.agent.endpoint();
    let session = |flags: &[&str], line: &[u8]| {
        let arguments = [&["sftp", "-b", "-"], flags, &[&endpoint]].concat();
        feed(&mut ends.cli(arguments), line)
    };
    let below = session(&["--root", root], b"ls -1 /\ncd ../..\npwd\nmkdir /new\n");
    assert!(succeeded(&below).contains("\nfile\n"), "{}", stdout(&below));
    assert!(
        stdout(&below).contains("Remote working directory: /\n"),
        "{}",
        stdout(&below)
    );
    assert!(ends.path("new").is_dir());
    let read_only = session(&["--root", root, "--read-only"], b"ls /\nrm /file\n");
    assert!(
        failed(&read_only).contains("cannot remove /file"),
        "{}",
        stderr(&read_only)
    );
    assert!(ends.path("file").exists());
}

// Another user's session is a process of the agent's program, which is not the one that runs this.
#[test]
fn files_commands_accept_user() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can be somebody else"
    );
    let ends = Ends::start();
    let place = ends.place(ends.write("file", "text"));
    let cat = |user: &str| ends.run(["cat".as_ref(), "-u".as_ref(), user.as_ref(), &*place]);
    assert_eq!(succeeded(&cat("root")), "text");
    assert!(failed(&cat("no-such-user")).contains("no-such-user"));
}

#[test]
fn ls_shows_owner_names_if_known() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can give files away"
    );
    let ends = Ends::start();
    let known = ends.write("known", "");
    let unknown = ends.write("unknown", "");
    chown(&known, Some(0), Some(0)).unwrap();
    chown(&unknown, Some(3_999_999), Some(3_999_998)).unwrap();
    let here = ends.place(ends.folder.path());
    let list = |flag: &str| ends.run(["ls".as_ref(), flag.as_ref(), &*here]);
    let owners = |flag: &str| {
        let output = list(flag);
        let lines = succeeded(&output).lines();
        let rows = lines.map(|line| {
            let words: Vec<&str> = line.split_whitespace().skip(1).take(2).collect();
            words.join(" ")
        });
        rows.collect::<Vec<_>>()
    };
    assert_eq!(owners("-l"), ["root root", "3999999 3999998"]);
    assert_eq!(owners("-n"), ["0 0", "3999999 3999998"]);
    let output = list("--json");
    let entries: Vec<Value> = serde_json::from_str(succeeded(&output)).unwrap();
    assert_eq!(
        (&entries[0]["user"], &entries[1]["user"]),
        (&json!("root"), &Value::Null)
    );
    let shown = ends.run(["stat".as_ref(), &*ends.place(&known)]);
    assert!(succeeded(&shown).contains("root (0)"), "{}", stdout(&shown));
}

#[test]
fn df_shows_free_space() {
    let ends = Ends::start();
    let here = ends.place(ends.folder.path());
    let output = ends.run(
        ["stat", "-f", "--json"]
            .map(AsRef::<std::ffi::OsStr>::as_ref)
            .iter()
            .chain([&&*here]),
    );
    let systems: Vec<Value> = serde_json::from_str(succeeded(&output)).unwrap();
    let number = |key: &str| systems[0][key].as_u64().unwrap();
    assert!(number("size") >= number("used") && number("size") >= number("free"));
    assert_eq!(number("name_max"), 255);
    let table = ends.batch("df\ndf -hi .\n");
    assert_eq!(succeeded(&table).matches("%Capacity").count(), 2);
}

#[test]
fn cp_in_the_guest_is_atomic() {
    let ends = Ends::start();
    ends.write("file", vec![3; 300_000]);
    ends.write("old", "old");
    ends.mkdir("d");
    succeeded(&ends.batch("cp file old\ncopy file d\ncp file file\n"));
    for path in ["file", "old", "d/file"] {
        assert_eq!(
            fs::read(ends.path(path)).unwrap(),
            vec![3; 300_000],
            "{path}"
        );
    }
    failed(&ends.batch("cp d other\n"));
    failed(&ends.batch("cp missing file\n"));
    assert_eq!(ends.names(), ["d", "file", "old"]);
}

#[test]
fn tilde_expands_and_h_changes_the_link_itself() {
    let ends = Ends::start();
    ends.write("file", "");
    let output =
        ends.batch("symlink file link\nchown -h 12 link\nchgrp -h 34 link\ncd ~root\npwd\n");
    assert!(
        succeeded(&output).ends_with("Remote working directory: /root\n"),
        "{}",
        stdout(&output)
    );
    use std::os::unix::fs::MetadataExt;
    let link = fs::symlink_metadata(ends.path("link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (12, 34));
    let file = fs::metadata(ends.path("file")).unwrap();
    assert_ne!((file.uid(), file.gid()), (12, 34));
}
