//! Files under a temporary name: what is taken for one that an earlier copy left, and what is not.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt, chown, symlink},
    path::Path,
};

use bytes::Bytes;
use harness::{TestAgent, TestFolder};
use vsock_agent_protocol::sftp::{
    Request,
    extension::{self, OpenPart, OpenedPart},
    status,
};

use super::{Session, extended, path};

fn open_part(folder: &Path, keep: bool) -> Request {
    let request = OpenPart {
        directory: path(folder, b""),
        names: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")],
        keep,
    };
    extended(extension::OPEN_PART, request.encode())
}

impl Session {
    async fn open_part(&mut self, folder: &Path, keep: bool) -> OpenedPart {
        OpenedPart::decode(self.data(open_part(folder, keep)).await).unwrap()
    }

    async fn close(&mut self, part: OpenedPart) {
        let handle = part.handle;
        assert_eq!(self.code(Request::Close { handle }).await, status::OK);
    }
}

#[tokio::test]
async fn open_part_continues_or_truncates_a_leftover_part() {
    let agent = TestAgent::start();
    for root in [false, true] {
        let folder = TestFolder::new("sftp");
        let at = |name: &str| folder.path().join(name);
        let query = format!("?root={}", folder.path().display());
        let mut session = if root {
            Session::start_with(&agent, &query).await
        } else {
            Session::start(&agent).await
        };
        let seen = if root { Path::new("/") } else { folder.path() };
        fs::write(at("one"), "left").unwrap();
        fs::write(at("two"), "longer").unwrap();
        let part = session.open_part(seen, true).await;
        assert_eq!((part.name, part.length), (1, 6));
        assert!(!at("one").exists());
        session.close(part).await;
        let part = session.open_part(seen, false).await;
        assert_eq!((part.name, part.length), (0, 0));
        assert!(!at("two").exists());
        assert_eq!(
            at("one").metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
    }
}

#[tokio::test]
async fn open_part_refuses_a_part_in_use() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let mut other = Session::start(&agent).await;
    let mine = session.open_part(folder.path(), false).await;
    for keep in [false, true] {
        let theirs = other.open_part(folder.path(), keep).await;
        assert_eq!((theirs.name, theirs.length), (1, 0));
        other.close(theirs).await;
    }
    let theirs = other.open_part(folder.path(), false).await;
    // All names are taken.
    let third = session.code(open_part(folder.path(), false)).await;
    assert_eq!(third, status::FAILURE);
    other.close(theirs).await;
    session.close(mine).await;
    let next = other.open_part(folder.path(), false).await;
    assert_eq!(
        (next.name, fs::read_dir(folder.path()).unwrap().count()),
        (0, 1)
    );
}

/// Puts something at the first name; it stays as it is, and is not written to.
async fn is_not_taken(plant: impl Fn(&Path)) {
    let agent = TestAgent::start();
    for keep in [false, true] {
        let folder = TestFolder::new("sftp");
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        plant(folder.path());
        let mut session = Session::start(&agent).await;
        let part = session.open_part(folder.path(), keep).await;
        assert_eq!((part.name, part.length), (1, 0));
        let planted = fs::File::open(folder.path().join("one")).unwrap();
        let mut content = [0; 8];
        planted.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"precious");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
    }
}

#[tokio::test]
async fn open_part_refuses_a_hard_link() {
    is_not_taken(|folder| fs::hard_link(folder.join("precious"), folder.join("one")).unwrap())
        .await;
}

#[tokio::test]
async fn open_part_refuses_a_symbolic_link() {
    is_not_taken(|folder| symlink("precious", folder.join("one")).unwrap()).await;
}

#[tokio::test]
async fn open_part_refuses_a_file_of_another_user() {
    is_not_taken(|folder| {
        fs::copy(folder.join("precious"), folder.join("one")).unwrap();
        chown(folder.join("one"), Some(65534), None).unwrap();
    })
    .await;
}

#[tokio::test]
async fn open_part_does_not_continue_a_part_writable_by_others() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let left = folder.path().join("one");
    fs::write(&left, "left").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o666)).unwrap();
    let mut session = Session::start(&agent).await;
    let part = session.open_part(folder.path(), true).await;
    assert_eq!((part.name, part.length), (0, 0));
}

#[tokio::test]
async fn read_only_session_refuses_open_part() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    fs::write(folder.path().join("one"), "left").unwrap();
    let mut session = Session::start_with(&agent, "?read-only=true").await;
    let refused = session.code(open_part(folder.path(), false)).await;
    assert_eq!(refused, status::PERMISSION_DENIED);
    assert!(folder.path().join("one").exists());
}
