//! `edit`, with editors that are scripts.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Output,
};

use super::{Ends, failed, stderr, succeeded};

/// Edits a file of the folder by a script that gets the draft as `$1`.
fn edit(ends: &Ends, file: &Path, script: &str) -> Output {
    let editor = ends.agent.folder().join("editor");
    fs::write(&editor, format!("set -e\n{script}\n")).unwrap();
    let mut command = ends.cli(["edit".as_ref(), &*ends.place(file)]);
    command
        .env_remove("VISUAL")
        .env("TMPDIR", ends.agent.folder());
    command.env("EDITOR", format!("sh '{}'", editor.display()));
    command.output().unwrap()
}

/// The drafts that are left.
fn drafts(ends: &Ends) -> Vec<PathBuf> {
    let all = fs::read_dir(ends.agent.folder())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_string_lossy().contains("agent-cli-edit"))
        .collect()
}

#[test]
fn edit_keeps_the_mode() {
    let ends = Ends::start();
    let file = ends.write("a file.conf", "old\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    let script = "case $1 in */'a file.conf') ;; *) exit 9;; esac
        test $(stat -c %a \"$1\") = 600; test $(stat -c %a \"${1%/*}\") = 700
        cp \"$1\" \"$1.new\"; echo new >> \"$1.new\"; mv \"$1.new\" \"$1\"";
    succeeded(&edit(&ends, &file, script));
    assert_eq!(fs::read_to_string(&file).unwrap(), "old\nnew\n");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o4751
    );
    assert_eq!(ends.names(), ["a file.conf"]);
    assert_eq!(drafts(&ends), [""; 0].map(PathBuf::from));
}

#[test]
fn edit_keeps_the_owner() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can give files away"
    );
    let ends = Ends::start();
    let file = ends.write("file", "old");
    std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
    succeeded(&edit(&ends, &file, "echo new > \"$1\""));
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (12, 34));
    assert_eq!(fs::read(&file).unwrap(), b"new\n");
}

#[test]
fn edit_without_changes_writes_nothing() {
    let ends = Ends::start();
    let file = ends.write("file", "old");
    let before = fs::metadata(&file).unwrap();
    let output = edit(&ends, &file, "touch \"$1\"");
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("unchanged"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&file).unwrap().ino(), before.ino());
    assert!(drafts(&ends).is_empty());
}

#[test]
fn failing_editor_changes_nothing() {
    let ends = Ends::start();
    let file = ends.write("file", "old");
    assert!(failed(&edit(&ends, &file, "exit 3")).contains("exit status: 3"));
    assert!(drafts(&ends).is_empty(), "there was nothing to keep");
    let output = edit(&ends, &file, "echo new > \"$1\"; exit 3");
    let words = failed(&output);
    let kept = drafts(&ends)[0].join("file");
    assert!(words.contains(kept.to_str().unwrap()), "{words}");
    assert_eq!(fs::read(kept).unwrap(), b"new\n");
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

#[test]
fn edit_conflict_keeps_both_versions() {
    let ends = Ends::start();
    let file = ends.write("file", "old");
    let times = "touch -d @1000000000";
    for change in ["printf abc >", "chmod 600", "rm"] {
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        // Same size and same time: what is in it counts.
        let script = format!(
            "{times} '{0}'; echo mine > \"$1\"; {change} '{0}'; test ! -e '{0}' || {times} '{0}'",
            file.display()
        );
        let output = edit(&ends, &file, &script);
        let words = failed(&output);
        assert!(words.contains("changed by another process"), "{words}");
        let kept = drafts(&ends).remove(0);
        assert!(words.contains(kept.to_str().unwrap()), "{words}");
        assert_eq!(fs::read(kept.join("file")).unwrap(), b"mine\n");
        fs::remove_dir_all(kept).unwrap();
        assert_ne!(fs::read(&file).unwrap_or_default(), b"mine\n", "{change}");
        let left = ends.names();
        assert!(left.iter().all(|name| name == "file"), "{left:?}");
    }
}

#[test]
fn edit_creates_a_new_file() {
    let ends = Ends::start();
    let file = ends.path("new");
    let output = edit(&ends, &file, "test ! -e \"$1\"");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!file.exists());
    succeeded(&edit(&ends, &file, "echo new > \"$1\""));
    assert_eq!(fs::read(&file).unwrap(), b"new\n");
    let taken = ends.path("taken");
    let script = format!("echo mine > \"$1\"; echo theirs > '{}'", taken.display());
    assert!(failed(&edit(&ends, &taken, &script)).contains("changed by another process"));
    assert_eq!(fs::read(&taken).unwrap(), b"theirs\n");
}

#[test]
fn edit_follows_links() {
    let ends = Ends::start();
    let file = ends.write("file", "old");
    symlink("file", ends.path("link")).unwrap();
    succeeded(&edit(&ends, &ends.path("link"), "echo new > \"$1\""));
    assert_eq!(fs::read_link(ends.path("link")).unwrap(), Path::new("file"));
    assert_eq!(fs::read(&file).unwrap(), b"new\n");
    symlink("nowhere", ends.path("dangling")).unwrap();
    assert!(
        failed(&edit(&ends, &ends.path("dangling"), "exit 1")).contains("the link is dangling")
    );
}

#[test]
fn edit_refuses_non_files() {
    let ends = Ends::start();
    for path in [ends.folder.path(), Path::new("/dev/null")] {
        assert!(failed(&edit(&ends, path, "exit 1")).contains("not a regular file"));
    }
}

#[test]
fn unreadable_draft_is_kept() {
    let ends = Ends::start();
    let file = ends.write("file", "old");
    let output = edit(
        &ends,
        &file,
        "rm \"$1\"; mkdir \"$1\"; echo mine > \"$1/mine\"",
    );
    let kept = drafts(&ends).remove(0).join("file");
    assert!(failed(&output).contains(kept.to_str().unwrap()));
    assert_eq!(fs::read(kept.join("mine")).unwrap(), b"mine\n");
    assert_eq!(fs::read(&file).unwrap(), b"old");
}
