//! `sftp` without a person: batches.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{Ends, failed, feed, name, stderr, stdout, succeeded};

#[test]
fn batch_stops_at_the_first_error_with_its_line() {
    let ends = Ends::start();
    let output = ends.batch("mkdir a\nrmdir nothing\nmkdir b\n");
    let words = failed(&output);
    assert!(words.contains("line 3: cannot remove "), "{words}");
    assert!(words.contains("/nothing"), "{words}");
    assert_eq!(stdout(&output), "sftp> mkdir a\nsftp> rmdir nothing\n");
    assert_eq!(ends.names(), ["a"]);
}

#[test]
fn batch_prefixes_ignore_errors_and_hide_lines() {
    let ends = Ends::start();
    let output =
        ends.batch("-rmdir nothing\n@mkdir a\n-@rmdir a/b\n# rm a\n\nmkdir b\nbye\nmkdir c\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 2, "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "sftp> -rmdir nothing\nsftp> # rm a\nsftp> \nsftp> mkdir b\nsftp> bye\n"
    );
    assert_eq!(ends.names(), ["a", "b"]);
}

#[test]
fn batch_is_read_from_a_file_or_stdin() {
    let ends = Ends::start();
    let file = ends.write("batch", format!("mkdir '{}'", ends.path("a").display()));
    let endpoint = ends.agent.endpoint();
    succeeded(&ends.run(["sftp", "-b", file.to_str().unwrap(), &endpoint]));
    assert!(ends.path("a").is_dir());
    let line = format!(
        "rmdir '{}'\nrmdir '/nothing'\nbye\n",
        ends.path("a").display()
    );
    failed(&feed(&mut ends.cli(["sftp", &endpoint]), line.as_bytes()));
    assert!(!ends.path("a").exists());
    let missing = ends.run(["sftp", "-b", "missing", &endpoint]);
    assert!(failed(&missing).contains("cannot read missing"));
}

#[test]
fn wildcards_match_names_with_any_bytes() {
    let ends = Ends::start();
    for file in [&b"a b.x"[..], b"-c.x", b"\xff\n.x", b".hidden.x", b"d.y"] {
        ends.write(name(file), "");
    }
    let output = ends.batch("ls -1 *.x\nchmod 600 *.x\nrm -- *.x\n");
    assert_eq!(
        succeeded(&output),
        "sftp> ls -1 *.x\n-c.x\na b.x\n\\xff\\x0a.x\nsftp> chmod 600 *.x\nsftp> rm -- *.x\n"
    );
    assert_eq!(ends.names(), [".hidden.x", "d.y"]);
    assert!(failed(&ends.batch("rm *.x\n")).contains("nothing matches *.x"));
}

#[test]
fn prompt_accepts_quoted_names_with_any_bytes() {
    let ends = Ends::start();
    let lines = br#"mkdir "a b"
mkdir a\ c
mkdir $'\xff\n'
mkdir -- -d
rename 'a b' "it's"
mkdir '*'
rmdir \*
symlink "x y" link
"#;
    succeeded(&ends.batch(lines));
    let names = [&b"-d"[..], b"a c", b"it's", b"link", b"\xff\n"].map(name);
    assert_eq!(ends.names(), names);
    assert_eq!(
        fs::read_link(ends.path("link")).unwrap().to_str(),
        Some("x y")
    );
}

#[test]
fn prompt_escapes_names_from_the_guest() {
    let ends = Ends::start();
    ends.write(name(b"\x1b[31mred\x9b"), "");
    std::os::unix::fs::symlink("\x1b]0;title\x07", ends.path("link")).unwrap();
    let output = ends.batch("ls -la\nstat *\n-rmdir $'\\x1b*'*\nrmdir *\n");
    for text in [&output.stdout, &output.stderr] {
        assert!(
            !text.iter().any(|byte| matches!(byte, 0x1b | 0x07 | 0x9b)),
            "{output:?}"
        );
    }
    assert!(
        stdout(&output).contains("link -> \\x1b]0;title\\x07"),
        "{}",
        stdout(&output)
    );
    failed(&output);
}

#[test]
fn prompt_changes_directories_and_attributes() {
    let ends = Ends::start();
    ends.write("file", "12345");
    let output = ends
        .batch("mkdir d\nrename file d/f\ncd d\nchmod 4750 f\nln -s f l\npwd\nls -n f l\nrm l\n");
    let text = succeeded(&output);
    let here = ends.path("d");
    assert!(
        text.contains(&format!("Remote working directory: {}\n", here.display())),
        "{text}"
    );
    assert!(text.contains("-rwsr-x---"), "{text}");
    assert!(text.contains(" l -> f\n"), "{text}");
    let mode = fs::metadata(here.join("f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4750);
    assert!(!here.join("l").exists());
}

#[test]
fn prompt_has_local_commands() {
    let ends = Ends::start();
    let output = ends
        .batch("lmkdir l\nlcd l\nlpwd\n!echo \"a  b\"\nlls -d .\nlumask 027\n!false\nversion\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let here = format!("Local working directory: {}\n", ends.path("l").display());
    for part in [
        &here[..],
        "a  b\n",
        "\n.\n",
        "Local umask: 027\n",
        "version 3\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn unknown_command_ends_a_batch() {
    let ends = Ends::start();
    for line in [
        "mkdri a",
        "mkdir",
        "mkdir a b",
        "ls -X",
        "mkdir 'a",
        "chmod u+x a",
    ] {
        failed(&ends.batch(line));
    }
    assert_eq!(ends.names(), [""; 0]);
}
