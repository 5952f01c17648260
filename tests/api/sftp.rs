//! Files over an upgraded connection, frame by frame.

mod conditions;
mod extensions;
mod large;
mod order;
mod parts;
mod requests;
mod secure;
mod user;
mod whole;

use std::{os::unix::ffi::OsStrExt, path::Path};

use bytes::{Bytes, BytesMut};
use harness::{RawClient, TestAgent, raw::Connection, upgrade};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vsock_agent_protocol::sftp::{Attributes, Reply, Request};

/// One session, one request at a time.
struct Session {
    stream: Connection,
    id: u32,
    extensions: Vec<(Bytes, Bytes)>,
}

impl Session {
    async fn start(agent: &TestAgent) -> Self {
        Self::start_with(agent, "").await
    }

    /// A session under the conditions of a query.
    async fn start_with(agent: &TestAgent, query: &str) -> Self {
        Self::start_at(&agent.socket(), query).await
    }

    /// The same with the agent at a socket.
    async fn start_at(socket: &Path, query: &str) -> Self {
        let mut stream = RawClient::new(socket).connect().await;
        let mut hello = BytesMut::from(wanted(query).as_bytes());
        // Together with the head: an eager client must not lose it.
        Request::Init { version: 3 }.encode(0, &mut hello);
        stream.write_all(&hello).await.unwrap();
        upgrade::answered(&mut stream).await;
        let mut session = Self {
            stream,
            id: 0,
            extensions: Vec::new(),
        };
        let (_, version) = session.receive().await;
        let Reply::Version {
            version: 3,
            extensions,
        } = version
        else {
            panic!("{version:?}")
        };
        session.extensions = extensions;
        session
    }

    async fn receive(&mut self) -> (u32, Reply) {
        let length = self.stream.read_u32().await.unwrap();
        let mut frame = vec![0; length as usize];
        self.stream.read_exact(&mut frame).await.unwrap();
        Reply::decode(frame.into()).unwrap()
    }

    /// Sends a request, and gives its id.
    async fn send(&mut self, request: &Request) -> u32 {
        self.id += 1;
        let mut out = BytesMut::new();
        request.encode(self.id, &mut out);
        self.stream.write_all(&out).await.unwrap();
        self.id
    }

    async fn ask(&mut self, request: Request) -> Reply {
        self.send(&request).await;
        let (id, reply) = self.receive().await;
        assert_eq!(id, self.id);
        reply
    }

    async fn code(&mut self, request: Request) -> u32 {
        match self.ask(request).await {
            Reply::Status { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    async fn open(&mut self, path: &Bytes, flags: u32) -> Bytes {
        let attributes = Attributes {
            permissions: Some(0o640),
            ..Attributes::default()
        };
        match self
            .ask(Request::Open {
                path: path.clone(),
                flags,
                attributes,
            })
            .await
        {
            Reply::Handle { handle } => handle,
            other => panic!("{other:?}"),
        }
    }
}

/// The request that asks for a session.
fn wanted(query: &str) -> String {
    upgrade::request(&format!("/1.0/sftp{query}"), "sftp")
}

fn extended(name: &'static str, data: Bytes) -> Request {
    Request::Extended {
        name: Bytes::from_static(name.as_bytes()),
        data,
    }
}

fn path(folder: &Path, name: &[u8]) -> Bytes {
    [folder.as_os_str().as_bytes(), b"/", name].concat().into()
}
