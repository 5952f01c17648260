//! A second HTTP/2 client, beside our library: hyper's, and the frames of commands one by one.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame as BodyFrame, Incoming},
    client::conn::http2::{self, SendRequest},
    ext::Protocol,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use vsock_agent_protocol::exec::stream::{DataChannel, Decoder, Frame, OUTPUT_WINDOW_BYTES};

use crate::RawClient;

/// Time for the next frame of a command, on a busy computer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a body is made of.
type Piece = Result<BodyFrame<Bytes>, io::Error>;
type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A connection. `Drop` closes it; those who want it to live longer keep it.
#[derive(Debug)]
pub struct RawHttp2 {
    sender: SendRequest<Body>,
    driver: JoinSet<()>,
}

impl RawHttp2 {
    /// Opens one, with large windows of HTTP/2, so that only those of the frames count.
    pub async fn open(client: &RawClient) -> Self {
        Self::with_window(client, 64 * 1024 * 1024).await
    }

    /// Opens one whose windows of HTTP/2 take `window` bytes that nobody has read.
    pub async fn with_window(client: &RawClient, window: u32) -> Self {
        let stream = TokioIo::new(client.connect().await);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(window)
            .handshake(stream)
            .await
            .unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Some tests end it from the other side.
            let _ = connection.await;
        });
        Self { sender, driver }
    }

    /// Closes the connection, whatever is open on it.
    pub async fn close(mut self) {
        self.driver.shutdown().await;
    }

    /// Waits until the agent has closed the connection.
    pub async fn closed(&mut self) {
        self.driver.join_next().await;
    }

    /// Sends the head of a request. Its body is what the returned sender gets.
    #[expect(clippy::disallowed_methods, reason = "bounded by what a test sends")]
    async fn begin(
        &self,
        method: Method,
        path: &str,
    ) -> (
        mpsc::UnboundedSender<Piece>,
        impl Future<Output = Result<Response<Incoming>, hyper::Error>> + use<>,
    ) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Piece>();
        let body = StreamBody::new(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        let mut connection = self.sender.clone();
        connection.ready().await.unwrap();
        let reply = connection.send_request(request(method, path, body.boxed_unsync()));
        (sender, reply)
    }

    /// A request without a body, and the status and the JSON of its reply.
    pub async fn call(&self, method: Method, path: &str) -> (StatusCode, Value) {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let mut connection = self.sender.clone();
        let reply = connection.send_request(request(method, path, body));
        read(reply.await.unwrap()).await
    }

    /// Extended CONNECT. The first request of a connection may be too early for it.
    pub async fn connect(&self, path: &str, protocol: &'static str) -> TokioIo<Upgraded> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let mut request = request(Method::CONNECT, path, body);
        let protocol = Protocol::from_static(protocol);
        request.extensions_mut().insert(protocol);
        if path.contains("events") {
            let headers = request.headers_mut();
            headers.insert("sec-websocket-version", "13".parse().unwrap());
        }
        let mut connection = self.sender.clone();
        let reply = connection.send_request(request).await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK, "{reply:?}");
        TokioIo::new(hyper::upgrade::on(reply).await.unwrap())
    }

    /// Sends `frames` as the whole beginning of a command, and returns the reply to it.
    pub async fn post(&self, frames: &[Frame]) -> (StatusCode, Value) {
        let (sender, reply) = self.begin(Method::POST, "/1.0/exec-stream").await;
        for frame in frames {
            sender.send(Ok(BodyFrame::data(frame.to_bytes()))).unwrap();
        }
        drop(sender);
        read(reply.await.unwrap()).await
    }

    /// Starts a command.
    pub async fn exec(&self, command: &[&str], more: Value) -> StreamExec {
        let (sender, reply) = self.begin(Method::POST, "/1.0/exec-stream").await;
        let first = command_frame(command, more).to_bytes();
        sender.send(Ok(BodyFrame::data(first))).unwrap();
        let reply = timeout(PATIENCE, reply).await.unwrap().unwrap();
        if reply.status() != StatusCode::OK {
            panic!("{:?}", read(reply).await);
        }
        let location = reply.headers()["location"].to_str().unwrap().to_owned();
        StreamExec {
            location,
            sender: Some(sender),
            body: reply.into_body(),
            decoder: Decoder::default(),
            chunk: Bytes::new(),
            outputs: Default::default(),
            grants: true,
        }
    }
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("http://agent{path}"))
        .body(body)
        .unwrap()
}

async fn read(reply: Response<Incoming>) -> (StatusCode, Value) {
    let status = reply.status();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
    (
        status,
        serde_json::from_slice(&body).unwrap_or_else(|_| text()),
    )
}

/// The first frame of a command.
#[must_use]
pub fn command_frame(command: &[&str], more: Value) -> Frame {
    let mut request = json!({ "command": command });
    let fields = request.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    Frame::Request(request.to_string().into())
}

/// A command on one stream.
#[derive(Debug)]
pub struct StreamExec {
    /// The path of its operation.
    pub location: String,
    /// What has come of standard output and standard error.
    pub outputs: [Vec<u8>; 2],
    /// Whether credit is sent for all output that comes.
    pub grants: bool,
    sender: Option<mpsc::UnboundedSender<Piece>>,
    body: Incoming,
    decoder: Decoder,
    chunk: Bytes,
}

impl StreamExec {
    /// Sends a frame.
    pub fn send(&self, frame: &Frame) {
        self.send_bytes(frame.to_bytes());
    }

    /// Sends bytes, which may be no frame.
    pub fn send_bytes(&self, bytes: Bytes) {
        let sender = self.sender.as_ref().unwrap();
        // Fails if the agent has ended the stream.
        let _ = sender.send(Ok(BodyFrame::data(bytes)));
    }

    /// Sends input.
    pub fn input(&self, data: impl Into<Bytes>) {
        self.send(&Frame::Data(DataChannel::Stdin, data.into()));
    }

    /// Ends the body of the request.
    pub fn end(&mut self) {
        self.sender = None;
    }

    /// Resets the stream.
    pub fn reset(self) {
        let sender = self.sender.as_ref().unwrap();
        sender.send(Err(io::Error::other("reset"))).unwrap();
    }

    /// The next frame. Output is also added to [`outputs`](Self::outputs). `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The stream was reset.
    pub async fn try_next(&mut self) -> Result<Option<Frame>, hyper::Error> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.chunk).unwrap() {
                self.count(&frame);
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(frame) => self.chunk = frame?.into_data().unwrap_or_default(),
                None => return Ok(None),
            }
        }
    }

    fn count(&mut self, frame: &Frame) {
        let Frame::Data(channel, data) = frame else {
            return;
        };
        self.outputs[*channel as usize - 1].extend_from_slice(data);
        if self.grants && self.sender.is_some() {
            let length = u32::try_from(data.len()).unwrap();
            self.send(&Frame::Credit(*channel, length));
        }
    }

    /// The next frame, which must come.
    pub async fn next(&mut self) -> Frame {
        let next = timeout(PATIENCE, self.try_next()).await;
        next.expect("a frame in time").unwrap().expect("a frame")
    }

    /// Reads until `text` has come on standard output.
    pub async fn read_until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.outputs[0]).contains(text) {
            let frame = self.next().await;
            assert!(!matches!(frame, Frame::Status(_)), "{self:?}");
        }
    }

    /// Reads to the end. Returns the status, which must be the last frame and the only one.
    pub async fn finish(&mut self) -> Value {
        loop {
            if let Frame::Status(json) = self.next().await {
                let after = timeout(PATIENCE, self.try_next()).await;
                assert_eq!(after.expect("an end in time").unwrap(), None);
                return serde_json::from_slice(&json).unwrap();
            }
        }
    }

    /// Everything of standard output that may come without credit, and then a pong: nothing more comes.
    pub async fn fill_window(&mut self) {
        self.grants = false;
        let window = usize::try_from(OUTPUT_WINDOW_BYTES).unwrap();
        while self.outputs[0].len() < window {
            self.next().await;
        }
        self.ping().await;
        assert_eq!(self.outputs[0].len(), window);
    }

    /// Waits for a pong.
    pub async fn ping(&mut self) {
        let payload = Bytes::from_static(b"are you?");
        self.send(&Frame::Ping(payload.clone()));
        while self.next().await != Frame::Pong(payload.clone()) {}
    }

    /// Waits until the agent has reset or ended the stream.
    pub async fn lost(&mut self) {
        let ended = async { while let Ok(Some(_)) = self.try_next().await {} };
        timeout(PATIENCE, ended).await.expect("an end in time");
    }
}
