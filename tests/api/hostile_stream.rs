//! Agents that speak HTTP/2 well, and lie in the frames of a command.
#![expect(clippy::print_stdout, reason = "measurements, with --show-output")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use harness::{RawClient, TestAgent, TestFolder, hyper_server};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep, timeout},
};
use vsock_agent_client::{Client, ClientError, Security};
use vsock_agent_protocol::exec::stream::{DataChannel, Frame, OUTPUT_WINDOW_BYTES};

use crate::{cli_files::cli, hostile_folder::peak_memory};

const PATIENCE: Duration = Duration::from_secs(60);

/// Most memory of `agent-cli`, in KiB: as in `hostile_agent`.
const MAX_MEMORY: u64 = 64 * 1024;

type Body = UnsyncBoxBody<Bytes, io::Error>;
/// The bodies of replies to commands; each is a list of chunks and whether the stream has an end.
type Script = Arc<dyn Fn() -> (Vec<Bytes>, bool) + Send + Sync>;

/// A hostile agent, which never reads what a command's client sends.
struct Liar {
    folder: TestFolder,
    _tasks: tokio::task::JoinSet<()>,
}

impl Liar {
    /// Answers each command with `script`.
    async fn start(script: Script) -> Self {
        let real = TestAgent::start();
        let info = RawClient::new(&real.socket()).get("/1.0").await.body;
        let info = Bytes::from(info.to_string());
        let folder = TestFolder::new("liar");
        let answer = move |request: Request<Incoming>| {
            let (info, script) = (info.clone(), Arc::clone(&script));
            async move { Ok::<_, Infallible>(reply(request, info, &script)) }
        };
        let tasks = hyper_server(&folder.path().join("sock"), answer);
        Self {
            folder,
            _tasks: tasks,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    fn client(&self) -> Client {
        let endpoint = format!("unix:{}", self.socket().display());
        Client::new(endpoint.parse().unwrap(), Security::Plain)
    }
}

fn reply(request: Request<Incoming>, info: Bytes, script: &Script) -> Response<Body> {
    if request.uri().path() != "/1.0/exec-stream" {
        let body = Full::new(info).map_err(|never| match never {});
        return Response::new(body.boxed_unsync());
    }
    let (chunks, has_end) = script();
    let mut chunks = VecDeque::from(chunks);
    // Kept, and never read.
    let unread = request.into_body();
    let body = StreamBody::new(stream::poll_fn(move |_| {
        let _unread = &unread;
        match chunks.pop_front() {
            Some(chunk) => std::task::Poll::Ready(Some(Ok(BodyFrame::data(chunk)))),
            None if has_end => std::task::Poll::Ready(None),
            None => std::task::Poll::Pending,
        }
    }));
    let mut reply = Response::new(body.boxed_unsync());
    *reply.status_mut() = StatusCode::OK;
    let location = "/1.0/operations/01234567-89ab-4cde-8f01-23456789abcd";
    let headers = reply.headers_mut();
    headers.insert("location", location.parse().unwrap());
    reply
}

fn data(channel: DataChannel, length: usize) -> Bytes {
    Frame::Data(channel, vec![b'x'; length].into()).to_bytes()
}

/// A piece of output that is stored, and after it many frames without data, in one chunk.
fn padded(channel: DataChannel, length: usize, chunk: usize) -> Bytes {
    let mut bytes = BytesMut::from(&data(channel, length)[..]);
    while bytes.len() < chunk {
        bytes.extend_from_slice(&[channel as u8, 0, 0, 0]);
    }
    bytes.freeze()
}

fn huge_json() -> Bytes {
    let json = format!("{{\"metadata\":[0{}]}}", ",0".repeat(2_000_000));
    Frame::Status(json.into()).to_bytes()
}

#[tokio::test]
async fn a_reply_that_breaks_the_protocol_is_an_error() {
    let window = usize::try_from(OUTPUT_WINDOW_BYTES).unwrap();
    let status = |json: &'static str| Frame::Status(json.into()).to_bytes();
    let ended = status(
        r#"{"id":"01234567-89ab-4cde-8f01-23456789abcd","status_code":200,"metadata":{"return":0,"bytes":{"1":7,"2":0}}}"#,
    );
    let close = Frame::Close(DataChannel::Stdout).to_bytes();
    let cases: Vec<(&str, Vec<Bytes>)> = vec![
        ("no frame", vec![]),
        ("no status", vec![data(DataChannel::Stdout, 3)]),
        ("no channel", vec![Bytes::from_static(b"\x0b\x00\x00\x00")]),
        (
            "a wrong length",
            vec![Bytes::from_static(b"\x05\x00\x00\x02ab")],
        ),
        (
            "half a frame",
            vec![Bytes::from_static(b"\x03\x00\x00\x09{")],
        ),
        ("a request", vec![Frame::Request("{}".into()).to_bytes()]),
        ("input", vec![data(DataChannel::Stdin, 3)]),
        ("a signal", vec![Frame::Signal(9).to_bytes()]),
        ("an abort", vec![Frame::Abort.to_bytes()]),
        ("a ping", vec![Frame::Ping(Bytes::new()).to_bytes()]),
        (
            "too much credit",
            vec![Frame::Credit(DataChannel::Stdin, u32::MAX).to_bytes()],
        ),
        (
            "output after its end",
            vec![close, data(DataChannel::Stdout, 1)],
        ),
        ("a status that is no JSON", vec![status("{")]),
        ("a status of another type", vec![status("[1]")]),
        ("a status of very many values", vec![huge_json()]),
        (
            "more output than the status says",
            vec![data(DataChannel::Stdout, 9), ended.clone()],
        ),
        (
            "less output than the status says",
            vec![data(DataChannel::Stdout, 3), ended],
        ),
    ];
    for (what, chunks) in cases {
        let liar = Liar::start(Arc::new(move || (chunks.clone(), true))).await;
        let output = liar.client().exec("x", [""; 0]).output();
        let output = timeout(PATIENCE, output).await.expect(what);
        assert!(output.is_err(), "{what}: {output:?}");
    }
    // A reader that takes nothing grants nothing.
    let chunks = vec![
        data(DataChannel::Stdout, window),
        data(DataChannel::Stdout, 1),
    ];
    let liar = Liar::start(Arc::new(move || (chunks.clone(), false))).await;
    let mut session = liar.client().exec("x", [""; 0]).start().await.unwrap();
    let mut stdout = session.take_stdout().unwrap();
    let ended = timeout(PATIENCE, session.wait()).await.unwrap();
    assert!(
        matches!(ended, Err(ClientError::Protocol { .. })),
        "{ended:?}"
    );
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(rest.len(), window);
}

/// Runs `agent-cli exec`, whose output nobody reads; gives the most memory it had, in KiB. It is killed if
/// it does not end in `time`.
async fn memory_of(liar: &Liar, words: &[&str], time: Duration) -> u64 {
    let endpoint = format!("unix:{}", liar.socket().display());
    let output = liar.folder.path().join("output");
    nix::unistd::mkfifo(&output, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = File::options()
        .read(true)
        .write(true)
        .open(&output)
        .unwrap();
    let mut child = Command::new(cli())
        .args(["--plain", "exec"])
        .args(words)
        .args([&endpoint, "--", "x"])
        .env("AGENT_CLI_CONFIG", liar.folder.path().join("config.toml"))
        .stdin(Stdio::null())
        .stdout(writer(&output))
        .stderr(writer(&output))
        .spawn()
        .unwrap();
    let end = Instant::now() + time;
    let mut memory = 0;
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        memory = peak_memory(&child).unwrap_or(memory);
        sleep(Duration::from_millis(5)).await;
    }
    let _ = child.kill();
    child.wait().unwrap();
    drop(reader);
    memory
}

fn writer(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

#[tokio::test]
async fn output_that_nobody_reads_takes_bounded_memory() {
    for (length, chunk) in [
        (1, 5),
        (4096, 60_000),
        (4096, 250_000),
        (16 * 1024, 250_000),
    ] {
        let pieces = usize::try_from(OUTPUT_WINDOW_BYTES).unwrap() / length;
        let pieces = pieces.min(100_000);
        let script = move || {
            let one = |channel| (0..pieces).map(move |_| padded(channel, length, chunk));
            let channels = [DataChannel::Stdout, DataChannel::Stderr];
            // The same memory on this side for all.
            let chunks: Vec<Bytes> = match chunk {
                ..=5 => channels.into_iter().flat_map(one).collect(),
                _ => {
                    let chunks = channels.map(|channel| padded(channel, length, chunk));
                    chunks.iter().cycle().take(2 * pieces).cloned().collect()
                }
            };
            (chunks, false)
        };
        let liar = Liar::start(Arc::new(script)).await;
        let memory = memory_of(&liar, &[], Duration::from_secs(5)).await;
        assert!(
            memory > 0 && memory < MAX_MEMORY,
            "{memory} KiB: {length} of {chunk}"
        );
        println!("{memory} KiB: {length} of {chunk}");
    }
    let liar = Liar::start(Arc::new(|| (vec![huge_json()], true))).await;
    let memory = memory_of(&liar, &[], Duration::from_secs(20)).await;
    assert!(memory < MAX_MEMORY, "{memory} KiB");
    println!("{memory} KiB: a huge status");
}
