//! `ls`, `cat`, `rm`, `mkdir` and `stat`.

use std::{
    fs,
    io::Read,
    os::unix::fs::{PermissionsExt, symlink},
    process::Stdio,
};

use serde_json::{Value, json};

use super::{Ends, failed, name, stderr, stdout, succeeded};

fn json_of(output: &std::process::Output) -> Vec<Value> {
    serde_json::from_str(succeeded(output)).unwrap()
}

#[test]
fn ls_sorts_and_hides_dot_files() {
    let ends = Ends::start();
    for (file, size) in [("b", 1), ("a", 20_000), (".c", 3)] {
        ends.write(file, vec![0; size]);
    }
    let here = ends.place(ends.folder.path());
    let list = |flags: &str| ends.run(["ls".as_ref(), flags.as_ref(), &*here]);
    assert_eq!(succeeded(&ends.run(["ls".as_ref(), &*here])), "a\nb\n");
    assert_eq!(succeeded(&list("-ar")), "b\na\n.c\n");
    assert_eq!(succeeded(&list("-aS")), "a\n.c\nb\n");
    let long = list("-lh");
    assert!(
        succeeded(&long).lines().next().unwrap().contains(" 20K "),
        "{}",
        stdout(&long)
    );
    let file = ends.place(ends.path("a"));
    assert_eq!(
        succeeded(&ends.run(["ls".as_ref(), &*file])).trim_end(),
        ends.path("a").to_str().unwrap()
    );
    assert!(
        failed(&ends.run(["ls".as_ref(), &*ends.place("/no-such")]))
            .contains("cannot list /no-such: ")
    );
}

#[test]
fn recursive_ls_does_not_follow_links() {
    let ends = Ends::start();
    ends.mkdir("d/e");
    ends.write("d/e/f", "");
    symlink("..", ends.path("d/up")).unwrap();
    let output = ends.run(["ls".as_ref(), "-R".as_ref(), &*ends.place(ends.path("d"))]);
    let root = ends.path("d").display().to_string();
    assert_eq!(
        succeeded(&output),
        format!("{root}:\ne\nup\n\n{root}/e:\nf\n")
    );
}

#[test]
fn ls_json_has_every_byte_of_names() {
    let ends = Ends::start();
    ends.write(name(b"\xff\n"), "1234");
    let obeyed = "\u{9b}31m\u{202e}";
    ends.write(obeyed, "");
    symlink("to", ends.path("link")).unwrap();
    let output = ends.run([
        "ls".as_ref(),
        "--json".as_ref(),
        &*ends.place(ends.folder.path()),
    ]);
    let list = json_of(&output);
    let (link, odd, file) = (&list[0], &list[1], &list[2]);
    assert_eq!(odd["name"], json!(obeyed));
    let is_obeyed = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!stdout(&output).contains(is_obeyed));
    assert_eq!(
        (&link["name"], &link["type"], &link["target"]),
        (&json!("link"), &json!("symlink"), &json!("to"))
    );
    assert_eq!(
        (&file["name_bytes"], &file["size"]),
        (&json!([255, 10]), &json!(4))
    );
    assert!(file["path_bytes"].is_array());
}

#[test]
fn cat_prints_files_including_those_without_a_size() {
    let ends = Ends::start();
    let file = ends.write("file", b"a\xff\x1b\n");
    let all = ["/proc/version".into(), file, "/dev/null".into()].map(|path| ends.place(path));
    let output = ends.cli(["cat"]).args(&all).output().unwrap();
    let expected = [&fs::read("/proc/version").unwrap()[..], b"a\xff\x1b\n"].concat();
    assert_eq!(output.stdout, expected, "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn cat_reports_failures_and_prints_the_rest() {
    let ends = Ends::start();
    let file = ends.write("file", "text");
    let all = ["/no-such".into(), ends.folder.path().to_owned(), file].map(|path| ends.place(path));
    let output = ends.cli(["cat"]).args(&all).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "a part was done");
    let words = stderr(&output);
    assert!(words.contains("cannot print /no-such: "), "{words}");
    assert!(words.contains("it is a directory"), "{words}");
    assert_eq!(stdout(&output), "text");
}

#[test]
fn cat_of_an_endless_file_ends_when_its_reader_closes() {
    let ends = Ends::start();
    let mut command = ends.cli(["cat".as_ref(), &*ends.place("/dev/zero")]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut some = [1; 100_000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    // What a shell shows for a program that wrote to a closed pipe.
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert!(some.iter().all(|byte| *byte == 0));
}

#[test]
fn rm_r_does_not_follow_links() {
    let ends = Ends::start();
    ends.mkdir("victim/deep");
    ends.write("victim/deep/file", "");
    ends.mkdir("tree/a/b");
    for number in 0..100 {
        ends.write(format!("tree/a/{number}"), "");
    }
    for link in ["tree/link", "tree/a/b/link", "bare"] {
        symlink(ends.path("victim"), ends.path(link)).unwrap();
    }
    let refused = ends.run(["rm".as_ref(), &*ends.place(ends.path("tree"))]);
    assert!(failed(&refused).contains("it is a directory"));
    succeeded(&ends.run([
        "rm".as_ref(),
        "-r".as_ref(),
        &*ends.place(ends.path("tree")),
    ]));
    succeeded(&ends.run([
        "rm".as_ref(),
        "-r".as_ref(),
        &*ends.place(ends.path("bare")),
    ]));
    assert_eq!(ends.names(), ["victim"]);
    assert!(ends.path("victim/deep/file").exists());
}

#[test]
fn rm_refuses_the_root_and_missing_files() {
    let ends = Ends::start();
    ends.mkdir("d/e");
    for path in ["/", "//.", "/.."] {
        let output = ends.run(["rm".as_ref(), "-rf".as_ref(), &*ends.place(path)]);
        assert!(failed(&output).contains("cannot be removed"), "{path}");
    }
    let above = ends.place(ends.path("d/e/.."));
    failed(&ends.run(["rm".as_ref(), "-rf".as_ref(), &*above]));
    assert!(ends.path("d/e").exists());
    let missing = ends.place(ends.path("missing"));
    assert!(failed(&ends.run(["rm".as_ref(), &*missing])).contains("missing"));
    succeeded(&ends.run(["rm".as_ref(), "-f".as_ref(), &*missing]));
}

#[test]
fn mkdir_creates_parents_and_sets_the_mode() {
    let ends = Ends::start();
    let deep = ends.place(ends.path("a/b/c"));
    assert!(failed(&ends.run(["mkdir".as_ref(), &*deep])).contains("cannot create "));
    for _ in 0..2 {
        succeeded(&ends.run(["mkdir".as_ref(), "-pm777".as_ref(), &*deep]));
    }
    let mode = |path| fs::metadata(ends.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("a/b/c"), 0o777);
    assert_ne!(mode("a/b"), 0o777);
    failed(&ends.run(["mkdir".as_ref(), &*deep]));
    ends.write("file", "");
    failed(&ends.run([
        "mkdir".as_ref(),
        "-p".as_ref(),
        &*ends.place(ends.path("file")),
    ]));
}

#[test]
fn stat_shows_all_attributes() {
    let ends = Ends::start();
    let file = ends.write("file", "12345");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("file", ends.path("link")).unwrap();
    let link = ends.place(ends.path("link"));
    let human = ends.run(["stat".as_ref(), &*link]);
    let text = succeeded(&human);
    assert!(
        text.contains("symlink") && text.contains("target    file"),
        "{text}"
    );
    let facts = json_of(&ends.run(["stat".as_ref(), "--json".as_ref(), "-L".as_ref(), &*link]));
    assert_eq!(
        (&facts[0]["type"], &facts[0]["mode"]),
        (&json!("file"), &json!("0640"))
    );
    assert_eq!(facts[0]["size"], 5);
    assert_eq!(facts[0]["uid"], nix::unistd::getuid().as_raw());
    let odd = ends.place(ends.write("\u{9b}31m\u{202e}", ""));
    let output = ends.run(["stat".as_ref(), "--json".as_ref(), &*odd]);
    assert!(!stdout(&output).contains(['\u{9b}', '\u{202e}']));
}

#[test]
fn rm_refuses_a_file_with_a_trailing_slash() {
    let ends = Ends::start();
    ends.write("file", "text");
    ends.mkdir("directory");
    symlink("directory", ends.path("link")).unwrap();
    for name in ["file/", "link/"] {
        for flags in ["-r", "-f"] {
            let place = ends.place(ends.path(name));
            let output = ends.run(["rm".as_ref(), flags.as_ref(), &*place]);
            assert!(failed(&output).contains("not a directory"), "{name}");
        }
    }
    let place = ends.place(ends.path("directory/"));
    succeeded(&ends.run(["rm".as_ref(), "-r".as_ref(), &*place]));
    assert!(!ends.path("directory").exists());
    assert!(ends.path("file").exists());
    assert!(ends.path("link").is_symlink());
}
