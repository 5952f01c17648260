//! What takes long delays only itself, and what must come after it. A hash of something endless is
//! what takes long here.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use harness::{TestAgent, TestFolder, eventually};
use tokio::time::timeout;
use vsock_agent_protocol::sftp::{
    Attributes, Reply, Request,
    extension::{FSYNC, HASH, HashRange, put_strings},
    open_flags, status,
};

use super::{Session, extended, path};

/// Size of a file without data, in bytes: hashing it takes longer than a test.
const ENDLESS: u64 = 1 << 43;

/// Time for something that is not waited for to be answered anyway.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time in which something that must wait would be answered if it did not.
const HURRY: Duration = Duration::from_millis(100);

impl Session {
    pub(super) async fn hash(&mut self, handle: &Bytes) -> u32 {
        let range = HashRange {
            handle: handle.clone(),
            offset: 0,
            length: ENDLESS,
        };
        self.send(&extended(HASH, range.encode())).await
    }

    /// The next reply, which must be to this request and in time.
    async fn answer(&mut self, id: u32) -> Reply {
        let (got, reply) = timeout(PATIENCE, self.receive()).await.unwrap();
        assert_eq!(got, id, "{reply:?}");
        reply
    }

    /// Does a request that must not be delayed.
    async fn at_once(&mut self, request: &Request) -> Reply {
        let id = self.send(request).await;
        self.answer(id).await
    }

    async fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let peeked = timeout(
            HURRY,
            tokio::io::AsyncReadExt::read(&mut self.stream, &mut byte),
        );
        peeked.await.is_err()
    }

    pub(super) async fn open_endless(&mut self, folder: &Path) -> Bytes {
        let name = "endless";
        let file = fs::File::create(folder.join(name)).unwrap();
        file.set_len(ENDLESS).unwrap();
        let flags = open_flags::READ | open_flags::WRITE;
        self.open(&path(folder, name.as_bytes()), flags).await
    }
}

fn stat() -> Request {
    Request::Stat {
        path: Bytes::from_static(b"/"),
    }
}

fn write(handle: &Bytes, data: &'static str) -> Request {
    Request::Write {
        handle: handle.clone(),
        offset: ENDLESS - 1,
        data: Bytes::from_static(data.as_bytes()),
    }
}

/// Descriptors of this process, which has the agent in it, that lead into a folder.
pub(super) fn open_in(folder: &Path) -> usize {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let targets = entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| target.starts_with(folder)).count()
}

#[tokio::test]
async fn slow_sftp_request_delays_only_itself() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    session.hash(&endless).await;
    for _ in 0..200 {
        let reply = session.at_once(&stat()).await;
        assert!(matches!(reply, Reply::Attributes { .. }), "{reply:?}");
    }
    let file = path(folder.path(), b"file");
    let flags = open_flags::WRITE | open_flags::CREATE;
    let handle = session.open(&file, flags).await;
    assert_eq!(session.code(write(&handle, "x")).await, status::OK);
    assert_eq!(session.code(Request::Close { handle }).await, status::OK);
}

#[tokio::test]
async fn only_conflicting_sftp_requests_wait() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    session.hash(&endless).await;
    let read = Request::Read {
        handle: endless.clone(),
        offset: 0,
        length: 10,
    };
    let reply = session.at_once(&read).await;
    assert!(matches!(reply, Reply::Data { .. }), "{reply:?}");
    let fstat = Request::Fstat {
        handle: endless.clone(),
    };
    let reply = session.at_once(&fstat).await;
    assert!(matches!(reply, Reply::Attributes { .. }), "{reply:?}");
    // From here on everything comes after a write that waits for the hash.
    session.send(&write(&endless, "x")).await;
    session.send(&fstat).await;
    let size = Request::Setstat {
        path: path(folder.path(), b"endless"),
        attributes: Attributes {
            size: Some(1),
            ..Attributes::default()
        },
    };
    session.send(&size).await;
    session.send(&Request::Close { handle: endless }).await;
    session.at_once(&stat()).await;
    let fsync = extended(FSYNC, put_strings(&[b"no handle"]));
    session.at_once(&fsync).await;
    assert!(session.is_silent().await);
    let length = fs::metadata(folder.path().join("endless")).unwrap().len();
    assert_eq!(length, ENDLESS);
}

#[tokio::test]
async fn waiting_sftp_requests_run_in_order() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    let first = session.hash(&endless).await;
    let mut ids = vec![first];
    for data in ["a", "b", "c"] {
        ids.push(session.send(&write(&endless, data)).await);
        let read = Request::Read {
            handle: endless.clone(),
            offset: ENDLESS - 1,
            length: 1,
        };
        ids.push(session.send(&read).await);
    }
    ids.push(session.send(&Request::Close { handle: endless }).await);
    session.at_once(&stat()).await;
    // The end of the file comes nearer: that is the end of the hash.
    let file = fs::File::options()
        .write(true)
        .open(folder.path().join("endless"));
    file.unwrap().set_len(0).unwrap();
    let mut replies = Vec::new();
    for id in ids {
        replies.push(session.answer(id).await);
    }
    for (place, data) in [(2, "a"), (4, "b"), (6, "c")] {
        let data = Bytes::from_static(data.as_bytes());
        assert_eq!(replies[place], Reply::Data { data });
    }
    let closed = replies.pop().unwrap();
    assert!(
        matches!(
            closed,
            Reply::Status {
                code: status::OK,
                ..
            }
        ),
        "{closed:?}"
    );
}

#[tokio::test]
async fn busy_sftp_session_does_not_affect_others_and_ends_with_its_client() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut busy = Session::start(&agent).await;
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(busy.open_endless(folder.path()).await);
    }
    for handle in &handles {
        for _ in 0..3 {
            busy.hash(handle).await;
        }
    }
    // Each hash opens its file again.
    let all_busy = async || open_in(folder.path()) == 3 + 8;
    assert!(eventually(PATIENCE, all_busy).await);
    busy.send(&stat()).await;
    assert!(busy.is_silent().await);
    let mut other = Session::start(&agent).await;
    other.at_once(&stat()).await;
    drop(busy);
    let all_closed = async || open_in(folder.path()) == 0;
    assert!(eventually(PATIENCE, all_closed).await);
}

#[tokio::test]
async fn sftp_handles_are_closed_when_the_client_disconnects() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    session.hash(&endless).await;
    let opendir = Request::Opendir {
        path: path(folder.path(), b""),
    };
    session.at_once(&opendir).await;
    session.send(&write(&endless, "x")).await;
    assert!(open_in(folder.path()) >= 3);
    drop(session);
    assert!(eventually(PATIENCE, async || open_in(folder.path()) == 0).await);
}

#[tokio::test]
async fn sftp_handles_are_closed_when_the_agent_stops() {
    let mut agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    session.hash(&endless).await;
    session.at_once(&stat()).await;
    let stopped = tokio::task::spawn_blocking(move || agent.stop());
    timeout(PATIENCE, stopped).await.unwrap().unwrap();
    assert!(eventually(PATIENCE, async || open_in(folder.path()) == 0).await);
}

#[tokio::test]
async fn full_sftp_session_ends_with_its_client() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    session.hash(&endless).await;
    let mut requests = bytes::BytesMut::new();
    for id in 0..1000 {
        write(&endless, "x").encode(id, &mut requests);
    }
    tokio::io::AsyncWriteExt::write_all(&mut session.stream, &requests)
        .await
        .unwrap();
    assert!(session.is_silent().await);
    drop(session);
    assert!(eventually(PATIENCE, async || open_in(folder.path()) == 0).await);
}
