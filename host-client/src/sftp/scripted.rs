//! A scripted server for tests of the client, also of replies that no server should send.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use futures_util::FutureExt;

use super::{OpenOptions, SILENCE_TIMEOUT, Sftp};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Attributes, MAX_FRAME_BYTES, Name, Reply, Request,
        extension::{self, OpenPart, OpenedPart},
        status,
    },
};

/// The server's end of the connection.
pub(crate) struct Server(DuplexStream);

impl Server {
    pub(crate) async fn next(&mut self) -> (u32, Request) {
        let length = self.0.read_u32().await.unwrap();
        let mut frame = BytesMut::zeroed(usize::try_from(length).unwrap());
        self.0.read_exact(&mut frame).await.unwrap();
        Request::decode(frame.freeze()).unwrap()
    }

    pub(crate) async fn say(&mut self, id: u32, reply: Reply) {
        let mut frame = BytesMut::new();
        reply.encode(id, &mut frame);
        // The client may have closed the connection.
        let _ = self.0.write_all(&frame).await;
    }

    /// Answers one request.
    async fn answer(&mut self, reply: Reply) -> Request {
        let (id, request) = self.next().await;
        self.say(id, reply).await;
        request
    }

    async fn exchange_versions(&mut self, extensions: &[(&'static str, &'static str)]) {
        let extensions = extensions
            .iter()
            .map(|(name, value)| (Bytes::from(*name), Bytes::from(*value)))
            .collect();
        let version = Reply::Version {
            version: 3,
            extensions,
        };
        assert_eq!(self.answer(version).await, Request::Init { version: 3 });
    }
}

/// A session with a server that has sent VERSION.
pub(crate) async fn session() -> (Sftp, Server) {
    session_with(&[]).await
}

/// The same with a server that has extensions.
pub(crate) async fn session_with(extensions: &[(&'static str, &'static str)]) -> (Sftp, Server) {
    let (near, far) = tokio::io::duplex(1024 * 1024);
    let mut server = Server(far);
    let (sftp, ()) = tokio::join!(
        Sftp::start(near, SILENCE_TIMEOUT),
        server.exchange_versions(extensions)
    );
    (sftp.unwrap(), server)
}

pub(crate) fn said(code: u32) -> Reply {
    Reply::Status {
        code,
        message: Bytes::new(),
    }
}

pub(crate) fn handle() -> Reply {
    Reply::Handle {
        handle: Bytes::from_static(b"h"),
    }
}

pub(crate) fn data(bytes: &[u8]) -> Reply {
    Reply::Data {
        data: Bytes::copy_from_slice(bytes),
    }
}

fn names(names: &[&[u8]]) -> Reply {
    let entry = |name: &&[u8]| Name {
        name: Bytes::copy_from_slice(name),
        long_name: Bytes::new(),
        attributes: Attributes::default(),
    };
    Reply::Names {
        names: names.iter().map(entry).collect(),
    }
}

fn is_protocol<T: std::fmt::Debug>(result: Result<T, ClientError>) {
    match result {
        Err(ClientError::Protocol { .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// A file the server has opened.
async fn opened() -> (super::RemoteFile, Server) {
    let (sftp, mut server) = session().await;
    let open = sftp.open("/f", OpenOptions::new().read(true));
    let (file, _) = tokio::join!(open, server.answer(handle()));
    (file.unwrap(), server)
}

/// Serves reads of `content`, never more than `most` bytes at once, until the file is closed.
async fn serve_reads(server: &mut Server, content: &[u8], most: usize) {
    loop {
        match server.next().await {
            (id, Request::Read { offset, length, .. }) => {
                let start = usize::try_from(offset).unwrap().min(content.len());
                let length = usize::try_from(length).unwrap().min(most);
                let end = (start + length).min(content.len());
                if start == end {
                    server.say(id, said(status::EOF)).await
                } else {
                    server.say(id, data(&content[start..end])).await
                }
            }
            (id, Request::Close { .. }) => return server.say(id, said(status::OK)).await,
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn replies_in_another_order_find_who_asked() {
    let (sftp, mut server) = session().await;
    let serve = async {
        let (first, _) = server.next().await;
        let (second, _) = server.next().await;
        server.say(second, said(status::NO_SUCH_FILE)).await;
        server.say(first, said(status::OK)).await;
    };
    let (first, second, ()) = tokio::join!(sftp.remove("/a"), sftp.remove("/b"), serve);
    first.unwrap();
    assert!(second.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_name_that_is_not_text_arrives_as_it_is() {
    let (sftp, mut server) = session().await;
    let name = &b"/\xff\xfe\n"[..];
    let (removed, request) = tokio::join!(sftp.remove(name), server.answer(said(status::OK)));
    removed.unwrap();
    assert_eq!(
        request,
        Request::Remove {
            path: Bytes::from_static(b"/\xff\xfe\n")
        }
    );
}

#[tokio::test]
async fn a_file_is_read_whole_from_a_server_that_gives_little_at_once() {
    let content: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    for most in [content.len(), 32_768, 5_000] {
        let (file, mut server) = opened().await;
        let get = async {
            let mut sink = Vec::new();
            let count = file.get(&mut sink).await.unwrap();
            file.close().await.unwrap();
            (count, sink)
        };
        let ((count, sink), ()) = tokio::join!(get, serve_reads(&mut server, &content, most));
        assert_eq!(count, 200_000);
        assert!(sink == content, "at most {most} bytes at once");
    }
}

#[tokio::test]
async fn a_file_is_written_in_pieces_that_cover_it() {
    let content: Vec<u8> = (0..100_001_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (file, mut server) = opened().await;
    let serve = async {
        let mut written = vec![0; content.len()];
        loop {
            match server.next().await {
                (id, Request::Write { offset, data, .. }) => {
                    let start = usize::try_from(offset).unwrap();
                    written[start..start + data.len()].copy_from_slice(&data);
                    server.say(id, said(status::OK)).await;
                }
                (id, Request::Close { .. }) => {
                    server.say(id, said(status::OK)).await;
                    return written;
                }
                (_, other) => panic!("{other:?}"),
            }
        }
    };
    let put = async {
        assert_eq!(file.put(&mut &content[..]).await.unwrap(), 100_001);
        file.close().await.unwrap();
    };
    let (written, ()) = tokio::join!(serve, put);
    assert!(written == content);
}

#[tokio::test]
async fn a_failed_write_fails_the_transfer() {
    let (file, mut server) = opened().await;
    let serve = async {
        server.answer(said(status::OK)).await;
        server.answer(said(status::FAILURE)).await;
    };
    let mut content = &[0; 50_000][..];
    let (put, ()) = tokio::join!(file.put(&mut content), serve);
    assert!(matches!(put, Err(ClientError::File { .. })));
}

#[tokio::test]
async fn more_data_than_asked_for_is_refused() {
    let (file, mut server) = opened().await;
    let (read, _) = tokio::join!(file.read_at(0, 4), server.answer(data(b"12345")));
    is_protocol(read);
}

#[tokio::test]
async fn a_reply_nobody_asked_for_ends_the_session() {
    let (sftp, mut server) = session().await;
    let serve = async {
        let (id, _) = server.next().await;
        server.say(id.wrapping_add(9), said(status::OK)).await;
    };
    let (removed, ()) = tokio::join!(sftp.remove("/a"), serve);
    is_protocol(removed);
    is_protocol(sftp.remove("/b").await);
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_session() {
    let (sftp, mut server) = session().await;
    let serve = async {
        server.next().await;
        server.0.write_u32(MAX_FRAME_BYTES + 1).await.unwrap();
    };
    let (removed, ()) = tokio::join!(sftp.remove("/a"), serve);
    is_protocol(removed);
}

#[tokio::test]
async fn a_server_that_leaves_is_a_lost_connection() {
    let (sftp, mut server) = session().await;
    let serve = async {
        server.next().await;
        drop(server);
    };
    let (removed, ()) = tokio::join!(sftp.remove("/a"), serve);
    assert!(matches!(removed, Err(ClientError::ConnectionLost { .. })));
}

#[tokio::test]
async fn a_reply_of_the_wrong_kind_is_refused() {
    for reply in [said(status::OK), data(b"x"), names(&[b"a"])] {
        let (sftp, mut server) = session().await;
        let (attributes, _) = tokio::join!(sftp.stat("/a"), server.answer(reply));
        is_protocol(attributes);
    }
}

#[tokio::test]
async fn a_handle_over_the_limit_is_refused() {
    for bytes in [0, 257] {
        let (sftp, mut server) = session().await;
        let reply = Reply::Handle {
            handle: vec![b'h'; bytes].into(),
        };
        let (directory, _) = tokio::join!(sftp.read_dir("/"), server.answer(reply));
        is_protocol(directory);
    }
}

/// Lists a directory that the server gives in `batches`.
async fn listed(batches: Vec<Reply>) -> Result<Vec<Vec<u8>>, ClientError> {
    let (sftp, mut server) = session().await;
    let serve = async {
        server.answer(handle()).await;
        for batch in batches {
            server.answer(batch).await;
        }
        server.answer(said(status::EOF)).await;
        std::future::pending::<()>().await;
    };
    let list = async {
        let mut directory = sftp.read_dir("/").await?;
        let mut found = Vec::new();
        while let Some(entry) = directory.next().await? {
            found.push(entry.name().as_encoded_bytes().to_vec());
        }
        Ok(found)
    };
    tokio::select! {
        found = list => found,
        () = serve => unreachable!("a server stays until its client leaves"),
    }
}

#[tokio::test]
async fn a_listing_comes_in_its_order_and_without_itself() {
    let batches = vec![names(&[b".", b"b", b".."]), names(&[b"a", b"\xff"])];
    assert_eq!(
        listed(batches).await.unwrap(),
        [&b"b"[..], b"a", b"\xff"].map(<[u8]>::to_vec)
    );
}

#[tokio::test]
async fn names_that_would_leave_the_directory_are_refused() {
    for name in [&b""[..], b"/", b"a/b", b"../x", b"a\0b"] {
        is_protocol(listed(vec![names(&[name])]).await);
    }
}

#[tokio::test]
async fn a_name_that_comes_twice_is_refused() {
    is_protocol(listed(vec![names(&[b"a"]), names(&[b"a"])]).await);
}

#[tokio::test]
async fn a_flood_of_dots_neither_recurses_nor_goes_on_for_ever() {
    let dots: Vec<&[u8]> = vec![b"."; 1_000];
    let batches = (0..200).map(|_| names(&dots)).collect();
    is_protocol(listed(batches).await);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    let (sftp, _server) = session().await;
    assert!(matches!(
        sftp.remove("/a").await,
        Err(ClientError::Silent { .. })
    ));
}

#[tokio::test]
async fn another_version_is_refused() {
    let (near, far) = tokio::io::duplex(1024);
    let mut server = Server(far);
    let version = Reply::Version {
        version: 2,
        extensions: Vec::new(),
    };
    let (sftp, _) = tokio::join!(Sftp::start(near, SILENCE_TIMEOUT), server.answer(version));
    is_protocol(sftp);
}

#[tokio::test]
async fn a_target_is_replaced_in_one_step_where_the_server_can() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut server = Server(far);
    let extensions = [("posix-rename@openssh.com", "1")];
    let (sftp, ()) = tokio::join!(
        Sftp::start(near, SILENCE_TIMEOUT),
        server.exchange_versions(&extensions)
    );
    let sftp = sftp.unwrap();
    let (replaced, request) =
        tokio::join!(sftp.replace("/a", "/b"), server.answer(said(status::OK)));
    replaced.unwrap();
    match request {
        Request::Extended { name, data } => {
            assert_eq!(&name[..], b"posix-rename@openssh.com");
            assert_eq!(&data[..], b"\0\0\0\x02/a\0\0\0\x02/b");
        }
        other => panic!("{other:?}"),
    }
}

/// The space of a part that failed is free once its handle is closed, which may be after its name is
/// removed.
#[tokio::test]
async fn removed_waits_until_a_dropped_part_is_closed() {
    let (sftp, mut server) = session_with(&[(extension::OPEN_PART, "1")]).await;
    let request = OpenPart {
        directory: Bytes::from_static(b"/d"),
        names: vec![Bytes::from_static(b"part")],
        keep: false,
    };
    let opened = OpenedPart {
        handle: Bytes::from_static(b"h"),
        name: 0,
        length: 0,
    };
    let data = opened.encode();
    let (part, _) = tokio::join!(
        sftp.open_part(request),
        server.answer(Reply::Extended { data })
    );
    drop(part.unwrap());
    let (id, request) = server.next().await;
    assert!(matches!(request, Request::Close { .. }), "{request:?}");
    let mut removed = std::pin::pin!(sftp.removed());
    assert!((&mut removed).now_or_never().is_none());
    tokio::join!(removed, server.say(id, said(status::OK)));
}
