//! Large data, which one thread of the agent reads and another writes: whole, in pieces, and where
//! they cannot go.

use std::{fs, time::Duration};

use bytes::{Bytes, BytesMut};
use harness::{TestAgent, TestFolder, eventually};
use tokio::io::AsyncWriteExt;
use vsock_agent_protocol::sftp::{Reply, Request, open_flags, status};

use super::{Session, order::open_in, path};

/// Length of one WRITE, in bytes: the most that the agent takes.
const PIECE: usize = 255 * 1024;

fn content(length: usize) -> Bytes {
    let bytes = (0..length).map(|n| (n / 251).to_le_bytes()[0]);
    bytes.collect::<Vec<_>>().into()
}

fn write(handle: &Bytes, offset: u64, data: &Bytes) -> Request {
    Request::Write {
        handle: handle.clone(),
        offset,
        data: data.clone(),
    }
}

impl Session {
    /// Sends a WRITE and a request for the attributes behind it, `piece` bytes at a time.
    async fn write_in_pieces(&mut self, request: &Request, piece: usize) -> (u32, u32) {
        let mut frames = BytesMut::new();
        let ids = (self.id + 1, self.id + 2);
        request.encode(ids.0, &mut frames);
        let root = Bytes::from_static(b"/");
        Request::Stat { path: root }.encode(ids.1, &mut frames);
        self.id = ids.1;
        for piece in frames.chunks(piece) {
            self.stream.write_all(piece).await.unwrap();
            self.stream.flush().await.unwrap();
        }
        ids
    }

    /// The status of that WRITE. The other request is answered too.
    async fn code_in_pieces(&mut self, request: &Request, piece: usize) -> u32 {
        let (first, second) = self.write_in_pieces(request, piece).await;
        // Two threads do them: either may be done first.
        let mut replies = [self.receive().await, self.receive().await];
        replies.sort_by_key(|(id, _)| *id);
        let [(written, reply), (known, attributes)] = replies;
        assert_eq!((written, known), (first, second));
        assert!(
            matches!(attributes, Reply::Attributes { .. }),
            "{attributes:?}"
        );
        match reply {
            Reply::Status { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn large_writes_arrive_whole_however_they_come() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large");
    let mut session = Session::start(&agent).await;
    let there = path(folder.path(), b"file");
    let flags = open_flags::READ | open_flags::WRITE | open_flags::CREATE;
    let handle = session.open(&there, flags).await;
    let data = content(PIECE);
    let mut expected = vec![0; 5_000];
    for (number, piece) in [usize::MAX, 100_000, 4_096, 997, 33]
        .into_iter()
        .enumerate()
    {
        // Not at the start of a page.
        let offset = 5_000 + number * PIECE;
        let request = write(&handle, offset.try_into().unwrap(), &data);
        let code = session.code_in_pieces(&request, piece).await;
        assert_eq!(code, status::OK, "in pieces of {piece}");
        expected.extend_from_slice(&data);
    }
    assert!(fs::read(folder.path().join("file")).unwrap() == expected);
    let mut read = Vec::new();
    while read.len() < expected.len() {
        let request = Request::Read {
            handle: handle.clone(),
            offset: read.len().try_into().unwrap(),
            length: u32::MAX,
        };
        match session.ask(request).await {
            Reply::Data { data } => read.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    assert!(read == expected);
}

#[tokio::test]
async fn failed_large_writes_do_not_affect_later_requests() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-refused");
    fs::write(folder.path().join("file"), "before").unwrap();
    let there = path(folder.path(), b"file");
    let mut session = Session::start(&agent).await;
    let full = Bytes::from_static(b"/dev/full");
    let full = session.open(&full, open_flags::WRITE).await;
    let read_only = session.open(&there, open_flags::READ).await;
    let nothing = Bytes::from_static(b"nothing");
    let flags = open_flags::WRITE | open_flags::CREATE;
    let data = content(PIECE);
    // Behind data that landed, nothing of the next is read ahead.
    let file = session.open(&path(folder.path(), b"landed"), flags).await;
    for handle in [&full, &read_only] {
        for (handle, good) in [(&file, true), (handle, false)] {
            let code = session.code(write(handle, 3, &data)).await;
            assert_eq!(code == status::OK, good, "{handle:?}");
        }
    }
    for handle in [&full, &read_only, &nothing] {
        for piece in [usize::MAX, 1_000] {
            let code = session
                .code_in_pieces(&write(handle, 3, &data), piece)
                .await;
            assert_ne!(code, status::OK, "{handle:?}");
        }
    }
    let too_far = session.open(&there, open_flags::WRITE).await;
    let request = write(&too_far, u64::MAX - 7, &data);
    assert_ne!(
        session.code_in_pieces(&request, usize::MAX).await,
        status::OK
    );
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"before");

    let mut session = Session::start_with(&agent, "?read-only=true").await;
    let handle = session.open(&there, open_flags::READ).await;
    let code = session
        .code_in_pieces(&write(&handle, 0, &data), usize::MAX)
        .await;
    assert_ne!(code, status::OK);
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"before");
}

#[tokio::test]
async fn large_writes_append_and_to_devices_work() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-append");
    let there = path(folder.path(), b"file");
    let mut session = Session::start(&agent).await;
    let flags = open_flags::WRITE | open_flags::APPEND | open_flags::CREATE;
    let handle = session.open(&there, flags).await;
    let null = Bytes::from_static(b"/dev/null");
    let null = session.open(&null, open_flags::WRITE).await;
    let data = content(PIECE);
    for handle in [&handle, &null, &handle] {
        let code = session
            .code_in_pieces(&write(handle, 0, &data), usize::MAX)
            .await;
        assert_eq!(code, status::OK);
    }
    let expected = [&data[..], &data[..]].concat();
    assert!(fs::read(folder.path().join("file")).unwrap() == expected);
}

#[tokio::test]
async fn waiting_large_writes_delay_only_themselves() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-wait");
    let mut session = Session::start(&agent).await;
    let endless = session.open_endless(folder.path()).await;
    session.hash(&endless).await;
    let data = content(PIECE);
    for _ in 0..3 {
        session.send(&write(&endless, 0, &data)).await;
    }
    let flags = open_flags::WRITE | open_flags::CREATE;
    let file = session.open(&path(folder.path(), b"file"), flags).await;
    for offset in [0, PIECE] {
        let offset = offset.try_into().unwrap();
        assert_eq!(session.code(write(&file, offset, &data)).await, status::OK);
    }
    assert!(fs::read(folder.path().join("file")).unwrap() == [&data[..], &data[..]].concat());
}

#[tokio::test]
async fn large_writes_complete_for_a_disconnected_client() {
    const WRITES: usize = 40;
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-left");
    let there = folder.path().join("file");
    let mut session = Session::start(&agent).await;
    let flags = open_flags::WRITE | open_flags::CREATE;
    let handle = session.open(&path(folder.path(), b"file"), flags).await;
    let data = content(PIECE);
    for number in 0..WRITES {
        let offset = (number * PIECE).try_into().unwrap();
        session.send(&write(&handle, offset, &data)).await;
    }
    // It says that nothing more comes, and reads no reply.
    session.stream.shutdown().await.unwrap();
    let expected = data.repeat(WRITES);
    let whole = async || fs::read(&there).unwrap() == expected;
    assert!(eventually(Duration::from_secs(20), whole).await);
}

#[tokio::test]
async fn requests_before_end_of_input_are_answered() {
    const WRITES: usize = 6;
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-rest");
    let data = content(PIECE);
    let tail = Bytes::from_static(b"tail");
    for round in 0..40 {
        let name = format!("file-{round}");
        let there = path(folder.path(), name.as_bytes());
        let mut session = Session::start(&agent).await;
        let flags = open_flags::WRITE | open_flags::CREATE;
        let handle = session.open(&there, flags).await;
        let mut ids = Vec::new();
        for number in 0..=WRITES {
            let offset = (number * PIECE).try_into().unwrap();
            let data = if number < WRITES { &data } else { &tail };
            ids.push(session.send(&write(&handle, offset, data)).await);
        }
        session.stream.shutdown().await.unwrap();
        for id in ids {
            let (answered, reply) = session.receive().await;
            assert_eq!(answered, id, "in order");
            assert!(
                matches!(reply, Reply::Status { code: 0, .. }),
                "{round}: {reply:?}"
            );
        }
        let expected = [&data.repeat(WRITES)[..], &tail].concat();
        assert!(
            fs::read(folder.path().join(&name)).unwrap() == expected,
            "{round}"
        );
    }
}

#[tokio::test]
async fn sftp_close_reply_follows_the_close() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-closed");
    let there = path(folder.path(), b"file");
    let data = content(200_000);
    let mut session = Session::start(&agent).await;
    for round in 0..1_000 {
        let flags = open_flags::WRITE | open_flags::CREATE;
        let handle = session.open(&there, flags).await;
        session.send(&write(&handle, 0, &data)).await;
        session.send(&Request::Close { handle }).await;
        for _ in 0..2 {
            session.receive().await;
        }
        assert_eq!(open_in(folder.path()), 0, "round {round}");
    }
}

#[tokio::test]
async fn client_that_disconnects_within_a_write_leaves_nothing_open() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-within");
    let mut session = Session::start(&agent).await;
    let flags = open_flags::WRITE | open_flags::CREATE;
    let handle = session.open(&path(folder.path(), b"file"), flags).await;
    let mut frame = BytesMut::new();
    write(&handle, 0, &content(PIECE)).encode(7, &mut frame);
    session.stream.write_all(&frame[..PIECE / 2]).await.unwrap();
    session.stream.flush().await.unwrap();
    assert_eq!(open_in(folder.path()), 1);
    drop(session);
    let closed = async || open_in(folder.path()) == 0;
    assert!(eventually(Duration::from_secs(3), closed).await);
}

#[tokio::test]
async fn sftp_read_precedes_a_later_write() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("large-later");
    fs::write(folder.path().join("file"), vec![b'A'; PIECE]).unwrap();
    let there = path(folder.path(), b"file");
    let mut session = Session::start(&agent).await;
    let flags = open_flags::READ | open_flags::WRITE;
    let handle = session.open(&there, flags).await;
    let read = Request::Read {
        handle: handle.clone(),
        offset: 0,
        length: PIECE.try_into().unwrap(),
    };
    let later = Bytes::from(vec![b'B'; 4_096]);
    session.send(&read).await;
    session.send(&write(&handle, 0, &later)).await;
    let written = async || fs::read(folder.path().join("file")).unwrap()[0] == b'B';
    assert!(eventually(Duration::from_secs(20), written).await);
    match session.receive().await {
        (_, Reply::Data { data }) => assert!(data.iter().all(|byte| *byte == b'A')),
        other => panic!("{other:?}"),
    }
}
