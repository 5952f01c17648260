//! Whose files: sessions of another user, and numbers of owners.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use harness::{
    AgentProcess, HangingFolder, RawClient, TestAgent, TestFolder, eventually, in_own_mounts,
    vm::build_for_here,
};
use serde_json::json;
use vsock_agent_protocol::{
    id::UNCHANGED,
    sftp::{Attributes, Owner, Reply, Request, open_flags, status},
    version::Family,
};

use super::{Session, extended, path};

const NOBODY: u32 = 65534;

/// The agent as a program, started by somebody who leaves it a descriptor open.
async fn agent_with_a_descriptor() -> (AgentProcess, TestFolder) {
    let folder = TestFolder::new("inherits");
    let agent = build_for_here().await.unwrap().agent;
    let script = folder.path().join("agent.sh");
    let text = format!(
        "#!/bin/sh\nexec 9</etc/passwd\nexec {} \"$@\"\n",
        agent.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let plain = |_: &Path| vec!["--plain".to_owned(), "--config=/dev/null".to_owned()];
    (
        AgentProcess::start_program(&script, "inherits", plain).await,
        folder,
    )
}

/// Processes whose first argument is the sub-command, with this folder as an argument.
fn servers_of(root: &Path) -> Vec<PathBuf> {
    let root = root.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let all = processes.map(|entry| entry.path()).filter(|path| {
        let line = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let mut words = line.split('\0').skip(1);
        words.next() == Some("sftp-server") && words.any(|word| word == root)
    });
    all.collect()
}

#[tokio::test]
async fn a_users_session_has_nothing_of_roots_that_could_be_taken_from_it() {
    let (agent, folder) = agent_with_a_descriptor().await;
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    chown(&inside, Some(NOBODY), None).unwrap();
    let query = format!("?user=nobody&root={}", inside.display());
    let mut session = Session::start_at(&agent.socket(), &query).await;
    let create = open_flags::CREATE | open_flags::WRITE;
    session.open(&Bytes::from_static(b"/file"), create).await;
    assert_eq!(fs::metadata(inside.join("file")).unwrap().uid(), NOBODY);
    // What goes by `/proc/self/fd` in the server works too.
    let stat = Request::Stat {
        path: Bytes::from_static(b"/file"),
    };
    assert!(matches!(session.ask(stat).await, Reply::Attributes { .. }));
    let space = extended("statvfs@openssh.com", text(b"/file"));
    assert!(matches!(session.ask(space).await, Reply::Extended { .. }));

    let servers = servers_of(&inside);
    let [server] = &servers[..] else {
        panic!("{servers:?}")
    };
    let words = fs::read_to_string(server.join("status")).unwrap();
    assert!(words.contains("\nUid:\t65534\t65534\t65534\t65534\n"));
    // Files in `/proc` of a process that is not dumpable are root's (`proc(5)`).
    assert_eq!(fs::metadata(server.join("environ")).unwrap().uid(), 0);
    for open in fs::read_dir(server.join("fd")).unwrap() {
        let leads_to = fs::read_link(open.unwrap().path()).unwrap();
        assert_ne!(leads_to, Path::new("/etc/passwd"));
    }
    drop(session);
    let gone = async || agent.children() == 0;
    assert!(eventually(Duration::from_secs(30), gone).await);
}

fn text(bytes: &[u8]) -> Bytes {
    let mut data = BytesMut::new();
    data.put_u32(bytes.len().try_into().unwrap());
    data.extend_from_slice(bytes);
    data.freeze()
}

#[tokio::test]
async fn an_owner_of_minus_one_stays_as_it_is() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("owner");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    chown(&file, Some(7), Some(8)).unwrap();
    let mut session = Session::start(&agent).await;
    for ((uid, gid), expected) in [
        ((UNCHANGED, 9), (7, 9)),
        ((10, UNCHANGED), (10, 9)),
        ((UNCHANGED, UNCHANGED), (10, 9)),
    ] {
        let attributes = Attributes {
            owner: Some(Owner { uid, gid }),
            ..Attributes::default()
        };
        let path = path(folder.path(), b"file");
        let set = Request::Setstat { path, attributes };
        assert_eq!(session.code(set).await, status::OK);
        let now = fs::metadata(&file).unwrap();
        assert_eq!((now.uid(), now.gid()), expected);
    }
}

#[tokio::test]
async fn relative_paths_start_at_the_top_for_hosts_of_incus() {
    for (family, home) in [(Family::Incus, "/"), (Family::Lxd, "/root")] {
        let agent = TestAgent::configured(|config| config.family = family);
        let mut session = Session::start(&agent).await;
        let folder = TestFolder::new("top");
        // As `incus file push -p` makes the folders on the way.
        let relative = folder.path().join("made");
        let relative = relative.strip_prefix("/").unwrap().to_str().unwrap();
        let path = Bytes::copy_from_slice(relative.as_bytes());
        let make = Request::Mkdir {
            path,
            attributes: Attributes::default(),
        };
        let made = session.code(make).await == status::OK;
        assert_eq!(made, family == Family::Incus);
        assert_eq!(folder.path().join("made").is_dir(), made);
        let path = Bytes::from_static(b".");
        match session.ask(Request::Realpath { path }).await {
            Reply::Names { names } => assert_eq!(names[0].name, home),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_root_that_does_not_answer_is_said_and_delays_nobody() {
    in_own_mounts(|| {
        let folder = TestFolder::new("hanging-root");
        let agent = TestAgent::start();
        let hanging = HangingFolder::mount(folder.path());
        let client = RawClient::new(&agent.socket());
        let asked = async {
            let query = format!("/1.0/sftp?root={}", folder.path().join("x").display());
            let request = super::upgrade::request(&query, "sftp");
            let waiting = client.send(&request);
            let answered = async {
                let mut exec = client.exec(&["echo", "up"], json!({})).await;
                assert_eq!(exec.read_all("1").await, b"up\n");
            };
            tokio::join!(waiting, answered).0
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        assert_eq!(runtime.block_on(asked).status, 504);
        drop(hanging);
    });
}
