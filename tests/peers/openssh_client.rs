//! OpenSSH's `sftp`.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use harness::{TestAgent, TestFolder};
use tokio::process::Command;

use crate::{assert_same_tree, bridge, finish, plant, random_file, succeed};

/// Runs a batch, which must succeed, and gives what was printed.
async fn batch(agent: &TestAgent, options: &[&str], commands: &str) -> String {
    succeed(&mut sftp(agent, options, commands).await).await
}

async fn sftp(agent: &TestAgent, options: &[&str], commands: &str) -> Command {
    let file = agent.folder().join("batch");
    fs::write(&file, commands).unwrap();
    let mut sftp = Command::new("sftp");
    sftp.args(options)
        .arg("-b")
        .arg(file)
        .arg("-D")
        .arg(bridge(agent).await);
    sftp
}

#[tokio::test]
async fn every_command_does_what_it_says() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    fs::create_dir(&here).unwrap();
    fs::create_dir(&there).unwrap();
    fs::write(here.join("a file"), "hello, world\n").unwrap();
    fs::set_permissions(here.join("a file"), PermissionsExt::from_mode(0o751)).unwrap();
    let commands = format!(
        "version\ncd {there}\nlcd {here}\npwd\nlpwd\nput -p \"a file\" one\nget -p one back\n\
         mkdir d\nput -f \"a file\" d/two\nls -la\nls -1 d\nls -lnt\nrename one three\n\
         ln three four\nln -s three five\nsymlink d/two six\nchmod 640 d/two\nchmod 2750 d\n\
         cp three copy\ndf\ndf -hi\nget five link\nget d/t*\nmkdir gone\nrmdir gone\n\
         put \"a file\" remove\nrm remove\n-rm no-such\n-mkdir d\nlmkdir local\nlumask 077\n\
         !true\nbye\n",
        there = there.display(),
        here = here.display(),
    );
    let printed = batch(&agent, &[], &commands).await;
    let said = |text: &str| assert!(printed.contains(text), "no {text:?} in\n{printed}");
    said("SFTP protocol version 3");
    said(&format!("Remote working directory: {}", there.display()));
    said("-rwxr-x--x");
    said("drwxr-xr-x");
    said("%Capacity");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    for path in [
        here.join("back"),
        here.join("link"),
        here.join("two"),
        there.join("three"),
        there.join("copy"),
        there.join("d/two"),
    ] {
        assert_eq!(read(&path), "hello, world\n", "{}", path.display());
    }
    let metadata = |name: &str| fs::symlink_metadata(there.join(name)).unwrap();
    assert_eq!(metadata("three").ino(), metadata("four").ino());
    assert_eq!(metadata("three").mode() & 0o7777, 0o751);
    assert_eq!(
        metadata("three").mtime(),
        fs::metadata(here.join("a file")).unwrap().mtime()
    );
    assert_eq!(metadata("d/two").mode() & 0o7777, 0o640);
    assert_eq!(metadata("d").mode() & 0o7777, 0o2750);
    assert_eq!(
        fs::read_link(there.join("five")).unwrap(),
        Path::new("three")
    );
    assert_eq!(
        fs::read_link(there.join("six")).unwrap(),
        Path::new("d/two")
    );
    for gone in ["one", "gone", "remove"] {
        assert!(!there.join(gone).exists(), "{gone}");
    }
}

#[tokio::test]
async fn a_batch_stops_at_the_first_error() {
    let agent = TestAgent::start();
    let never = agent.folder().join("never");
    let commands = format!(
        "rm {0}/no-such\nmkdir {0}/never\n",
        agent.folder().display()
    );
    let output = finish(&mut sftp(&agent, &[], &commands).await).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("No such file or directory"), "{words}");
    assert!(!never.exists());
}

#[tokio::test]
async fn odd_sizes_and_numbers_of_requests_change_nothing() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    random_file(&path("from"), 300_007);
    for options in [
        ["-B", "1000", "-R", "1"],
        ["-B", "4097", "-R", "3"],
        ["-B", "32768", "-R", "1024"],
        ["-B", "261120", "-R", "64"],
        // More than the server takes at once: the answers are short.
        ["-B", "1000000", "-R", "2"],
    ] {
        let writes = options[1] != "1000000";
        let commands = if writes {
            format!(
                "put {0}/from {0}/there\nget {0}/there {0}/back\n",
                folder.path().display()
            )
        } else {
            format!("get {0}/from {0}/back\n", folder.path().display())
        };
        batch(&agent, &options, &commands).await;
        assert!(
            fs::read(path("from")).unwrap() == fs::read(path("back")).unwrap(),
            "{options:?}"
        );
        fs::remove_file(path("back")).unwrap();
    }
}

#[tokio::test]
async fn a_broken_transfer_is_resumed() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    random_file(&path("from"), 2_000_000);
    let data = fs::read(path("from")).unwrap();
    fs::write(path("put"), &data[..1_234_567]).unwrap();
    fs::write(path("got"), &data[..765_432]).unwrap();
    let commands = format!(
        "reput {0}/from {0}/put\nreget {0}/from {0}/got\n",
        folder.path().display()
    );
    batch(&agent, &[], &commands).await;
    for name in ["put", "got"] {
        assert!(fs::read(path(name)).unwrap() == data, "{name}");
    }
}

#[tokio::test]
async fn client_round_trips_a_tree_with_openssh_server() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let path = |name: &str| folder.path().join(name);
    plant(&path("from"));
    fs::set_permissions(path("from/one"), PermissionsExt::from_mode(0o711)).unwrap();
    let commands = format!(
        "put -rp {0}/from {0}/there\nget -rp {0}/there {0}/back\n",
        folder.path().display()
    );
    batch(&agent, &[], &commands).await;
    assert_same_tree(&path("from"), &path("there"));
    assert_same_tree(&path("from"), &path("back"));
    for copy in ["there/one", "back/one"] {
        let metadata = fs::metadata(path(copy)).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o711, "{copy}");
        assert_eq!(
            metadata.mtime(),
            fs::metadata(path("from/one")).unwrap().mtime(),
            "{copy}"
        );
    }
}
