//! Sessions that may not write, that cannot leave a directory, and that run as somebody.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use harness::{RawClient, TestAgent, TestFolder};
use vsock_agent_protocol::{
    sftp::{
        Attributes, Reply, Request, Times,
        extension::{self, put_strings},
        open_flags, status,
    },
    version::{API_EXTENSIONS, SFTP_SESSION},
};

use super::{Session, extended, path, wanted};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn open(path: &str, flags: u32) -> Request {
    Request::Open {
        path: bytes(path),
        flags,
        attributes: Attributes::default(),
    }
}

fn query(root: &Path) -> String {
    format!("?root={}", root.display())
}

#[tokio::test]
async fn sftp_session_options_are_echoed() {
    let agent = TestAgent::start();
    assert!(API_EXTENSIONS.contains(&SFTP_SESSION));
    let said = |session: Session| {
        let mut extensions = session.extensions.into_iter();
        let found = extensions.find(|(name, _)| name == extension::SESSION);
        found.map(|(_, value)| value)
    };
    let plain = Session::start_with(&agent, "?project=default").await;
    assert_eq!(said(plain), None);
    let query = "?root=%2F&user=root&read-only=true";
    let session = Session::start_with(&agent, query).await;
    assert_eq!(said(session).unwrap(), "user=root&root=%2F&read-only=true");
}

#[tokio::test]
async fn unsupported_sftp_session_options_are_refused() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    for (query, word) in [
        ("?user=no.such.user", "no.such.user"),
        ("?user=", "user"),
        ("?root=relative", "absolute"),
        ("?root=/no/such/place", "/no/such/place"),
        ("?root=/proc/version", "/proc/version"),
        ("?read-only=maybe", "maybe"),
    ] {
        let reply = client
            .send(&wanted(query).replace("Upgrade\r\nUpgrade", "close, Upgrade\r\nUpgrade"))
            .await;
        assert_eq!(reply.status, 400, "{query}: {reply:?}");
        let text = reply.body["error"].as_str().unwrap();
        assert!(text.contains(word), "{query}: {text}");
    }
}

#[tokio::test]
async fn read_only_sftp_session_refuses_changes() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    fs::write(folder.path().join("file"), "data").unwrap();
    let mut session = Session::start_with(&agent, "?read-only=true").await;
    let file = path(folder.path(), b"file");
    let new = path(folder.path(), b"new");
    let attributes = Attributes {
        permissions: Some(0),
        ..Attributes::default()
    };
    let handle = session.open(&file, open_flags::READ).await;
    let flagged = [
        open_flags::WRITE,
        open_flags::READ | open_flags::WRITE,
        open_flags::READ | open_flags::TRUNCATE,
        open_flags::READ | open_flags::CREATE,
        open_flags::READ | open_flags::APPEND,
    ];
    let mut refused: Vec<Request> = flagged
        .map(|flags| Request::Open {
            path: file.clone(),
            flags,
            attributes: attributes.clone(),
        })
        .into();
    let two = || put_strings(&[&file, &new]);
    let link = extension::SetLinkAttributes {
        path: file.clone(),
        attributes: attributes.clone(),
    };
    refused.extend([
        Request::Setstat {
            path: file.clone(),
            attributes: attributes.clone(),
        },
        Request::Fsetstat {
            handle: handle.clone(),
            attributes: attributes.clone(),
        },
        Request::Remove { path: file.clone() },
        Request::Mkdir {
            path: new.clone(),
            attributes,
        },
        Request::Rmdir { path: file.clone() },
        Request::Rename {
            from: file.clone(),
            to: new.clone(),
        },
        Request::Symlink {
            target: file.clone(),
            link: new.clone(),
        },
        extended(extension::POSIX_RENAME, two()),
        extended(extension::HARDLINK, two()),
        extended(extension::LSETSTAT, link.encode()),
    ]);
    for request in refused {
        match session.ask(request.clone()).await {
            Reply::Status { code, message } => {
                assert_eq!(code, status::PERMISSION_DENIED, "{request:?}");
                assert_eq!(message, "the session is read-only");
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }
    let write = Request::Write {
        handle: handle.clone(),
        offset: 0,
        data: bytes("x"),
    };
    assert_ne!(session.code(write).await, status::OK);
    let read = Request::Read {
        handle,
        offset: 0,
        length: 10,
    };
    let data = bytes("data");
    assert_eq!(session.ask(read).await, Reply::Data { data });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn sftp_root_confines_all_paths() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let (root, secret) = (folder.path().join("root"), folder.path().join("secret"));
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(&secret, "secret").unwrap();
    symlink("../../secret", root.join("d/up")).unwrap();
    symlink(&secret, root.join("absolute")).unwrap();
    symlink("..", root.join("parent")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("/", root.join("slash")).unwrap();
    let mut session = Session::start_with(&agent, &query(&root)).await;
    let outside = secret.to_str().unwrap();
    let lost = [
        "d/up",
        "absolute",
        "parent/secret",
        "../secret",
        "/../secret",
        outside,
        "magic/etc",
    ];
    for name in lost {
        let code = session.code(open(name, open_flags::READ)).await;
        assert_eq!(code, status::NO_SUCH_FILE, "{name}");
        let stat = Request::Stat { path: bytes(name) };
        assert_eq!(session.code(stat).await, status::NO_SUCH_FILE, "{name}");
    }
    // What would change something outside does it inside, or nothing.
    for name in [
        "parent/../..",
        "slash/..",
        "d/../..",
        "/..",
        "..",
        ".",
        "/",
        "",
    ] {
        for request in [
            Request::Rmdir { path: bytes(name) },
            Request::Remove { path: bytes(name) },
            Request::Rename {
                from: bytes(name),
                to: bytes("gone"),
            },
        ] {
            assert_ne!(session.code(request).await, status::OK, "{name}");
        }
    }
    let truncate = Request::Setstat {
        path: bytes("d/up"),
        attributes: Attributes {
            size: Some(0),
            ..Attributes::default()
        },
    };
    assert_eq!(session.code(truncate).await, status::NO_SUCH_FILE);
    let link = Request::Lstat {
        path: bytes("parent/"),
    };
    let Reply::Attributes { attributes } = session.ask(link).await else {
        panic!()
    };
    let Reply::Attributes { attributes: top } =
        session.ask(Request::Stat { path: bytes("/") }).await
    else {
        panic!()
    };
    assert_eq!(attributes, top, "the root is its own parent");
    for (path, real) in [
        ("", "/"),
        ("../..", "/"),
        ("slash/d", "/d"),
        ("d/up", "/secret"),
    ] {
        let realpath = Request::Realpath { path: bytes(path) };
        let Reply::Names { names } = session.ask(realpath).await else {
            panic!("{path}")
        };
        assert_eq!(names[0].name, real, "{path}");
    }
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    assert!(root.join("d").is_dir());
}

#[tokio::test]
async fn all_sftp_requests_work_below_a_root() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let root = folder.path();
    let mut session = Session::start_with(&agent, &query(root)).await;
    let ok = [
        Request::Mkdir {
            path: bytes("/d/"),
            attributes: Attributes::default(),
        },
        Request::Symlink {
            target: bytes("/d"),
            link: bytes("l"),
        },
    ];
    for request in ok {
        assert_eq!(
            session.code(request.clone()).await,
            status::OK,
            "{request:?}"
        );
    }
    let flags = open_flags::WRITE | open_flags::CREATE | open_flags::EXCLUSIVE;
    let handle = session.open(&bytes("l/f"), flags).await;
    let setstat = Request::Setstat {
        path: bytes("/l/f"),
        attributes: Attributes {
            size: Some(3),
            permissions: Some(0o600),
            times: Some(Times {
                accessed: 1,
                modified: 2,
            }),
            ..Attributes::default()
        },
    };
    let rename = Request::Rename {
        from: bytes("d/f"),
        to: bytes("g"),
    };
    let link = extended(extension::HARDLINK, put_strings(&[b"g", b"l/h"]));
    let system = extended(extension::STATVFS, put_strings(&[b"/d"]));
    for request in [Request::Close { handle }, setstat, rename.clone(), link] {
        assert_eq!(
            session.code(request.clone()).await,
            status::OK,
            "{request:?}"
        );
    }
    assert!(matches!(session.ask(system).await, Reply::Extended { .. }));
    assert_eq!(fs::metadata(root.join("d/h")).unwrap().len(), 3);
    let readlink = Request::Readlink { path: bytes("/l") };
    let Reply::Names { names } = session.ask(readlink).await else {
        panic!()
    };
    assert_eq!(names[0].name, "/d");
    let opendir = Request::Opendir { path: bytes("/") };
    let Reply::Handle { handle } = session.ask(opendir).await else {
        panic!()
    };
    let Reply::Names { names } = session.ask(Request::Readdir { handle }).await else {
        panic!()
    };
    assert_eq!(names.len(), 5, "{names:?}");
    for path in ["g", "l", "d/h"] {
        let remove = Request::Remove { path: bytes(path) };
        assert_eq!(session.code(remove).await, status::OK, "{path}");
    }
    let rmdir = Request::Rmdir { path: bytes("d/") };
    assert_eq!(session.code(rmdir).await, status::OK);
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_root_withstands_a_directory_swapped_for_a_link() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let root = folder.path().join("root");
    let outside = folder.path().join("outside");
    for folder in [&root, &outside, &root.join("d")] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(outside.join("f"), "outside").unwrap();
    symlink(&outside, root.join("link")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapping = {
        let (stop, root) = (Arc::clone(&stop), root.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // d is the directory, then the link to the outside, then the directory again.
                fs::rename(root.join("d"), root.join("kept")).unwrap();
                fs::rename(root.join("link"), root.join("d")).unwrap();
                fs::rename(root.join("d"), root.join("link")).unwrap();
                fs::rename(root.join("kept"), root.join("d")).unwrap();
            }
        })
    };
    let mut session = Session::start_with(&agent, &query(&root)).await;
    let flags = open_flags::WRITE | open_flags::CREATE | open_flags::TRUNCATE;
    for round in 0..500 {
        if let Reply::Handle { handle } = session.ask(open("d/f", flags)).await {
            session.code(Request::Close { handle }).await;
        }
        session.code(Request::Remove { path: bytes("d/f") }).await;
        let there = fs::read(outside.join("f")).unwrap();
        assert_eq!(there, b"outside", "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}
