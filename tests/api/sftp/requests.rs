//! Each request of version 3, and what is none.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use bytes::{Bytes, BytesMut};
use harness::{TestAgent, TestFolder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vsock_agent_protocol::sftp::{Attributes, Reply, Request, Times, open_flags, status};

use super::{Session, path};

#[tokio::test]
async fn all_sftp_version_3_requests_work() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    // Bytes that are no UTF-8, a newline, and a leading dash.
    let file = path(folder.path(), b"-\xff\xfe\n");
    let handle = session
        .open(
            &file,
            open_flags::WRITE | open_flags::CREATE | open_flags::EXCLUSIVE,
        )
        .await;
    let data = Bytes::from_static(b"hello, world");
    let write = Request::Write {
        handle: handle.clone(),
        offset: 0,
        data: data.clone(),
    };
    assert_eq!(session.code(write).await, status::OK);
    let attributes = Attributes {
        times: Some(Times {
            accessed: 5,
            modified: 6,
        }),
        ..Attributes::default()
    };
    let fsetstat = Request::Fsetstat {
        handle: handle.clone(),
        attributes,
    };
    assert_eq!(session.code(fsetstat).await, status::OK);
    let Reply::Attributes { attributes } = session
        .ask(Request::Fstat {
            handle: handle.clone(),
        })
        .await
    else {
        panic!()
    };
    assert_eq!(
        (attributes.size, attributes.times),
        (
            Some(12),
            Some(Times {
                accessed: 5,
                modified: 6
            })
        )
    );
    assert_eq!(attributes.permissions, Some(0o100_640));
    assert_eq!(session.code(Request::Close { handle }).await, status::OK);

    let handle = session.open(&file, open_flags::READ).await;
    let read = |offset| Request::Read {
        handle: handle.clone(),
        offset,
        length: u32::MAX,
    };
    assert_eq!(
        session.ask(read(7)).await,
        Reply::Data {
            data: data.slice(7..)
        }
    );
    assert_eq!(session.code(read(12)).await, status::EOF);
    assert_eq!(
        session
            .code(Request::Close {
                handle: handle.clone()
            })
            .await,
        status::OK
    );
    assert_eq!(
        session.code(Request::Close { handle }).await,
        status::NO_SUCH_FILE
    );

    let directory = path(folder.path(), b"d");
    let attributes = Attributes {
        permissions: Some(0o700),
        ..Attributes::default()
    };
    let mkdir = Request::Mkdir {
        path: directory.clone(),
        attributes,
    };
    assert_eq!(session.code(mkdir.clone()).await, status::OK);
    assert_eq!(session.code(mkdir).await, status::FAILURE);
    let moved = path(&folder.path().join("d"), b"moved");
    let rename = Request::Rename {
        from: file.clone(),
        to: moved.clone(),
    };
    assert_eq!(session.code(rename.clone()).await, status::OK);
    assert_eq!(session.code(rename).await, status::NO_SUCH_FILE);
    let back = Request::Rename {
        from: moved.clone(),
        to: directory.clone(),
    };
    assert_eq!(
        session.code(back).await,
        status::FAILURE,
        "never over something"
    );

    let link = path(folder.path(), b"link");
    let symlink = Request::Symlink {
        target: Bytes::from_static(b"d/moved"),
        link: link.clone(),
    };
    assert_eq!(session.code(symlink).await, status::OK);
    assert_eq!(
        fs::read_link(folder.path().join("link")).unwrap(),
        Path::new("d/moved")
    );
    let Reply::Names { names } = session.ask(Request::Readlink { path: link.clone() }).await else {
        panic!()
    };
    assert_eq!(names[0].name, "d/moved");
    let Reply::Names { names } = session.ask(Request::Realpath { path: link.clone() }).await else {
        panic!()
    };
    assert_eq!(names[0].name, moved);
    let size = |reply| match reply {
        Reply::Attributes { attributes } => attributes.size,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        size(session.ask(Request::Lstat { path: link.clone() }).await),
        Some(7)
    );
    assert_eq!(
        size(session.ask(Request::Stat { path: link.clone() }).await),
        Some(12)
    );
    let attributes = Attributes {
        permissions: Some(0o4755),
        size: Some(5),
        ..Attributes::default()
    };
    let setstat = Request::Setstat {
        path: moved.clone(),
        attributes,
    };
    assert_eq!(session.code(setstat).await, status::OK);
    let metadata = fs::metadata(folder.path().join("d/moved")).unwrap();
    assert_eq!(
        (metadata.len(), metadata.permissions().mode()),
        (5, 0o104_755)
    );

    let Reply::Handle { handle } = session
        .ask(Request::Opendir {
            path: directory.clone(),
        })
        .await
    else {
        panic!()
    };
    let readdir = Request::Readdir {
        handle: handle.clone(),
    };
    let Reply::Names { names } = session.ask(readdir.clone()).await else {
        panic!()
    };
    let mut names: Vec<_> = names.into_iter().map(|name| name.name).collect();
    names.sort();
    assert_eq!(names, [".", "..", "moved"]);
    assert_eq!(session.code(readdir).await, status::EOF);
    assert_eq!(session.code(Request::Close { handle }).await, status::OK);

    let rmdir = Request::Rmdir { path: directory };
    assert_eq!(
        session.code(rmdir.clone()).await,
        status::FAILURE,
        "it is not empty"
    );
    for path in [moved, link] {
        assert_eq!(session.code(Request::Remove { path }).await, status::OK);
    }
    assert_eq!(session.code(rmdir).await, status::OK);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The code and the id that a frame is answered with.
async fn refused(session: &mut Session, frame: &[u8]) -> (u32, u32) {
    session.stream.write_all(frame).await.unwrap();
    match session.receive().await {
        (id, Reply::Status { code, .. }) => (code, id),
        (_, other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn unknown_sftp_requests_get_op_unsupported() {
    let agent = TestAgent::start();
    let mut session = Session::start(&agent).await;
    let other = refused(&mut session, &[0, 0, 0, 6, 99, 0, 0, 0, 7, 1]).await;
    assert_eq!(other, (status::OP_UNSUPPORTED, 7));
    // OPEN that ends in the middle.
    let cut = refused(&mut session, &[0, 0, 0, 6, 3, 0, 0, 0, 8, 1]).await;
    assert_eq!(cut, (status::BAD_MESSAGE, 8));
    let unknown = Request::Extended {
        name: Bytes::from_static(b"x@y"),
        data: Bytes::new(),
    };
    assert_eq!(session.code(unknown).await, status::OP_UNSUPPORTED);
    let root = Request::Stat {
        path: Bytes::from_static(b"/"),
    };
    assert!(matches!(session.ask(root).await, Reply::Attributes { .. }));
}

#[tokio::test]
async fn oversized_sftp_frame_ends_the_session() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let victim = folder.path().join("victim");
    fs::write(&victim, "").unwrap();
    let mut session = Session::start(&agent).await;
    let mut hidden = BytesMut::new();
    Request::Remove {
        path: path(folder.path(), b"victim"),
    }
    .encode(1, &mut hidden);
    let mut frame = 300_000_u32.to_be_bytes().to_vec();
    frame.extend_from_slice(&hidden);
    frame.resize(300_004, 0);
    // The agent may be gone before all of it is written.
    let _ = session.stream.write_all(&frame).await;
    let mut rest = Vec::new();
    let _ = session.stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "{rest:?}");
    assert!(victim.exists());
}

#[tokio::test]
async fn opening_a_fifo_does_not_block_the_sftp_session() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut session = Session::start(&agent).await;
    for flags in [open_flags::READ, open_flags::WRITE] {
        let path = path(folder.path(), b"fifo");
        let open = Request::Open {
            path,
            flags,
            attributes: Attributes::default(),
        };
        assert_eq!(session.code(open).await, status::FAILURE);
    }
}
