//! A second client, written from LXD's API and not from our library, so that a mistake both our
//! ends make is still seen: HTTP by hand, websockets by tungstenite.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use futures_util::{SinkExt, StreamExt};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error as WsError, Message},
};
use tokio_util::either::Either;
use tokio_vsock::{VsockAddr, VsockStream};
use vsock_agent_client::Endpoint;

use crate::{
    Pair,
    pinned::{AGENT_NAME, client_config},
    upgrade,
};

/// A websocket to the agent.
pub type Socket = WebSocketStream<Connection>;

/// A connection to the agent.
pub type Connection = Either<Plain, Box<TlsStream<Plain>>>;

/// What a connection goes over.
pub type Plain = Either<UnixStream, VsockStream>;

/// Speaks to the agent at an endpoint, without TLS unless that is asked for.
#[derive(Debug, Clone)]
pub struct RawClient {
    endpoint: Endpoint,
    tls: Option<Arc<ClientConfig>>,
}

/// An answer: the status, and the body as JSON, or as text if it is none.
#[derive(Debug, Clone, PartialEq)]
pub struct RawReply {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Value,
}

impl RawClient {
    /// A client of the agent at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            endpoint: Endpoint::Unix(socket.to_owned()),
            tls: None,
        }
    }

    /// A client of the agent at an endpoint, as the command line writes it.
    #[must_use]
    pub fn at(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.parse().unwrap(),
            tls: None,
        }
    }

    /// The same with TLS, as LXD's host does it: it has the pair `own`, and knows the agent by its
    /// certificate.
    #[must_use]
    pub fn with_tls(self, own: &Pair, agent: &Pair) -> Self {
        Self {
            tls: Some(Arc::new(client_config(own, agent))),
            ..self
        }
    }

    /// The same, which offers HTTP/2 in TLS.
    #[must_use]
    pub fn with_http2(mut self) -> Self {
        if let Some(tls) = &mut self.tls {
            Arc::make_mut(tls).alpn_protocols = vec![b"h2".to_vec()];
        }
        self
    }

    /// A connection nothing was said on.
    pub async fn connect(&self) -> Connection {
        let stream = self.connect_plain().await;
        let Some(tls) = &self.tls else {
            return Either::Left(stream);
        };
        let name = ServerName::try_from(AGENT_NAME).unwrap();
        let connector = TlsConnector::from(Arc::clone(tls));
        let stream = connector.connect(name, stream).await.unwrap();
        Either::Right(Box::new(stream))
    }

    async fn connect_plain(&self) -> Plain {
        self.try_connect().await.unwrap()
    }

    /// A connection without TLS, if anything listens.
    ///
    /// # Errors
    ///
    /// Any of the socket, and the monitor's refusal.
    pub async fn try_connect(&self) -> io::Result<Plain> {
        Ok(match &self.endpoint {
            Endpoint::Unix(path) => Either::Left(UnixStream::connect(path).await?),
            Endpoint::Hybrid { path, port } => Either::Left(through_monitor(path, *port).await?),
            Endpoint::Vsock(address) => {
                let address = VsockAddr::new(address.cid.0, address.port);
                Either::Right(VsockStream::connect(address).await?)
            }
            other => panic!("{other} is of a kind that is not known here"),
        })
    }

    /// One request on a connection of its own.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> RawReply {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: custom.socket\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&(head + body)).await
    }

    /// Sends these bytes, and reads to the end of the connection.
    pub async fn send(&self, request: &str) -> RawReply {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        parse_reply(&String::from_utf8(reply).unwrap())
    }

    /// A connection that has become one of another protocol.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Connection {
        let mut stream = self.connect().await;
        let request = upgrade::request(path, protocol);
        stream.write_all(request.as_bytes()).await.unwrap();
        upgrade::answered(&mut stream).await;
        stream
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> RawReply {
        self.request("GET", path, "").await
    }

    /// Opens a websocket.
    ///
    /// # Errors
    ///
    /// The HTTP status, when the agent refuses.
    pub async fn websocket(&self, path: &str) -> Result<Socket, u16> {
        let url = format!("ws://custom.socket{path}");
        match client_async(url, self.connect().await).await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(reply)) => Err(reply.status().as_u16()),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Asks for a command, with the fields LXD's hosts send. `more` is put over them.
    pub async fn post_exec(&self, command: &[&str], more: Value) -> RawReply {
        let mut request = json!({
            "command": command, "wait-for-websocket": true, "interactive": false,
            "environment": { "TERM": "xterm" }, "width": 0, "height": 0,
            "record-output": false, "user": 0, "group": 0, "cwd": "",
        });
        let fields = request.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        self.request("POST", "/1.0/exec", &request.to_string())
            .await
    }

    /// A command that was asked for, and none of its sockets.
    #[must_use]
    pub fn unjoined(&self, id: &str) -> RawExec {
        RawExec {
            client: self.clone(),
            id: id.to_owned(),
            sockets: BTreeMap::new(),
        }
    }

    /// Starts a command and joins all its sockets.
    pub async fn exec(&self, command: &[&str], more: Value) -> RawExec {
        let reply = self.post_exec(command, more).await;
        assert_eq!(reply.status, 202, "{reply:?}");
        let id = reply.body["metadata"]["id"].as_str().unwrap().to_owned();
        let secrets = &reply.body["metadata"]["metadata"]["fds"];
        let mut exec = self.unjoined(&id);
        // In the order of LXD's hosts.
        for name in ["control", "0", "1", "2"] {
            if let Some(secret) = secrets[name].as_str() {
                exec.join(name, secret).await;
            }
        }
        exec
    }
}

/// A command and its sockets.
#[derive(Debug)]
pub struct RawExec {
    client: RawClient,
    /// The operation.
    pub id: String,
    /// Sockets by name: `control`, `0`, and without a terminal `1` and `2`.
    pub sockets: BTreeMap<String, Socket>,
}

impl RawExec {
    /// Where to join a socket.
    #[must_use]
    pub fn path(id: &str, secret: &str) -> String {
        format!("/1.0/operations/{id}/websocket?secret={secret}")
    }

    /// Joins one of its sockets.
    pub async fn join(&mut self, name: &str, secret: &str) {
        let path = Self::path(&self.id, secret);
        let socket = self.client.websocket(&path).await.unwrap();
        self.sockets.insert(name.to_owned(), socket);
    }

    /// Sends to the command's input.
    pub async fn send(&mut self, data: &[u8]) {
        let socket = self.sockets.get_mut("0").unwrap();
        socket.send(Message::binary(data.to_vec())).await.unwrap();
    }

    /// Ends the command's input.
    pub async fn end_input(&mut self) {
        self.sockets
            .get_mut("0")
            .unwrap()
            .send(Message::text(""))
            .await
            .unwrap();
    }

    /// Says something on the control socket.
    pub async fn control(&mut self, message: Value) {
        let socket = self.sockets.get_mut("control").unwrap();
        socket
            .send(Message::text(message.to_string()))
            .await
            .unwrap();
    }

    /// Everything an output socket has until its end, which must be said with a text message.
    pub async fn read_all(&mut self, name: &str) -> Vec<u8> {
        let socket = self.sockets.get_mut(name).unwrap();
        let mut output = Vec::new();
        loop {
            match socket.next().await {
                Some(Ok(Message::Binary(data))) => output.extend_from_slice(&data),
                Some(Ok(Message::Text(_))) => return output,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("socket {name} ended without saying so: {other:?}"),
            }
        }
    }

    /// Reads an output socket until `text` has come.
    pub async fn read_until(&mut self, name: &str, text: &str) -> String {
        let socket = self.sockets.get_mut(name).unwrap();
        let mut output = String::new();
        while !output.contains(text) {
            match socket.next().await {
                Some(Ok(Message::Binary(data))) => output += &String::from_utf8_lossy(&data),
                other => panic!("no {text:?} in {output:?}, then {other:?}"),
            }
        }
        output
    }

    /// The operation at its end.
    pub async fn wait(&self) -> Value {
        let reply = self
            .client
            .get(&format!("/1.0/operations/{}/wait", self.id))
            .await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.body["metadata"].clone()
    }
}

/// A connection to a port of the guest, through its monitor's socket.
async fn through_monitor(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    let line = format!("CONNECT {port}\n");
    stream.write_all(line.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        answer.push(stream.read_u8().await?);
    }
    assert!(answer.starts_with(b"OK "), "{answer:?}");
    Ok(stream)
}

fn parse_reply(text: &str) -> RawReply {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    RawReply { status, body }
}
