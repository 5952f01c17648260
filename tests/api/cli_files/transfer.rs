//! `get` and `put` in a batch.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::{Ends, failed, name, stderr, succeeded};

#[test]
fn put_and_get_keep_content_and_mode() {
    let ends = Ends::start();
    let file = ends.write("there file", vec![7; 300_000]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o751)).unwrap();
    ends.mkdir("d");
    succeeded(&ends.batch(
        "put 'there file' copy\nput -f copy d\nget d/copy back\nlcd d\nlcd ..\nget copy d/again\n",
    ));
    for path in ["copy", "d/copy", "back", "d/again"] {
        assert_eq!(
            fs::read(ends.path(path)).unwrap(),
            fs::read(&file).unwrap(),
            "{path}"
        );
        let mode = fs::metadata(ends.path(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751, "{path}");
    }
}

#[test]
fn put_and_get_expand_wildcards() {
    let ends = Ends::start();
    for file in [&b"a b.x"[..], b"\xff\n.x", b"-c.x", b"d.y"] {
        ends.write(name(file), file);
    }
    ends.mkdir("far");
    ends.mkdir("near");
    succeeded(&ends.batch("mput *.x far\nmget far/* near\n"));
    let expected = [&b"-c.x"[..], b"a b.x", b"\xff\n.x"].map(name);
    assert_eq!(super::names(&ends.path("near")), expected);
    for file in expected {
        assert_eq!(
            fs::read(ends.path("near").join(file)).unwrap(),
            file.as_encoded_bytes()
        );
    }
    assert!(failed(&ends.batch("get *.z")).contains("nothing matches *.z"));
    assert!(failed(&ends.batch("put *.z")).contains("nothing matches *.z"));
}

#[test]
fn put_and_get_copy_trees_with_links() {
    let ends = Ends::start();
    ends.mkdir("tree/deep");
    ends.write("tree/deep/file", "text");
    symlink("deep/file", ends.path("tree/link")).unwrap();
    succeeded(&ends.batch("put -r tree far\nget -R far near\n"));
    assert_eq!(fs::read(ends.path("near/deep/file")).unwrap(), b"text");
    assert_eq!(
        fs::read_link(ends.path("near/link")).unwrap().to_str(),
        Some("deep/file")
    );
    let output = ends.batch("get tree elsewhere");
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("tree"), "{}", stderr(&output));
}

#[test]
fn reput_and_reget_skip_complete_files() {
    let ends = Ends::start();
    ends.write("file", "text");
    let output = ends.batch("put file far\nreput file far\nget far near\nreget far near\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let words = stderr(&output);
    assert_eq!(words.matches("it is complete").count(), 2, "{words}");
    assert_eq!(ends.names(), ["far", "file", "near"]);
    assert_eq!(fs::read(ends.path("near")).unwrap(), b"text");
}

#[test]
fn put_and_get_of_missing_files_fail_and_leave_nothing() {
    let ends = Ends::start();
    for line in ["get missing", "put missing"] {
        let output = ends.batch(line);
        assert!(failed(&output).contains("missing"), "{}", stderr(&output));
    }
    assert_eq!(ends.names(), [""; 0]);
}
