//! A guest that wants to fill its host's disk and memory: what `agent-cli serve` says of it and keeps.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use harness::{TestFolder, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::sleep,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::hostile_folder::{configure, peak_memory, seconds, start_serving};

/// How long it tries, unless `HOSTILE_SECONDS` says another time.
const SECONDS: u64 = 4;

/// Reads a request: its head, and what is said of the body's length.
async fn read_request(stream: &mut UnixStream) -> Option<String> {
    let mut bytes = Vec::new();
    let head = loop {
        bytes.push(stream.read_u8().await.ok()?);
        if bytes.ends_with(b"\r\n\r\n") {
            break String::from_utf8(bytes).ok()?;
        }
    };
    let length = header(&head, "content-length").and_then(|text| text.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut values = lines.filter(|(other, _)| other.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.trim())
}

/// An agent with a version of 4 MiB that a terminal would obey, and events that end at once.
async fn answer(mut stream: UnixStream, visits: Arc<AtomicUsize>) {
    while let Some(head) = read_request(&mut stream).await {
        if let Some(key) = header(&head, "sec-websocket-key") {
            let accept = derive_accept_key(key.as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            // A close frame, and the end.
            let _ = stream.write_all(&[0x88, 0]).await;
            return;
        }
        if head.starts_with("PUT") {
            visits.fetch_add(1, Ordering::Relaxed);
        }
        // Short later on, so that it could be visited often.
        let length = match visits.load(Ordering::Relaxed) {
            0 | 1 => 400_000,
            _ => 1,
        };
        let version = "\\u009b31m".repeat(length);
        let body = format!(
            r#"{{"type":"sync","status":"Success","status_code":200,"metadata":{{"environment":{{"server":"x","server_version":"{version}","server_pid":{}}}}}}}"#,
            visits.load(Ordering::Relaxed)
        );
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
        let answer = format!("{head} {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Says by turns that it is ready and that it is not, as fast as it can.
async fn flip(socket: &Path) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    for state in ["Ready", "Started"].iter().cycle() {
        let body = format!(r#"{{"state":"{state}"}}"#);
        let request = format!(
            "PATCH /1.0 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(request.as_bytes()).await.is_err()
            || read_request(&mut stream).await.is_none()
        {
            return;
        }
    }
}

#[tokio::test]
async fn what_a_guest_says_fills_no_disk_and_it_is_not_visited_all_the_time() {
    let folder = TestFolder::new("hostile-guest");
    let configuration = folder.path().join("configuration");
    configure(&configuration, folder.path(), 1);
    let visits = Arc::<AtomicUsize>::default();
    let agent = UnixListener::bind(folder.path().join("vm0")).unwrap();
    let mut tasks = JoinSet::new();
    let count = Arc::clone(&visits);
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _)) = agent.accept().await {
            open.spawn(answer(stream, Arc::clone(&count)));
        }
    });
    let log = folder.path().join("log");
    let serving = start_serving(&configuration, &log);
    let socket = folder.path().join("vm0_9000");
    tasks.spawn(async move { flip(&socket).await });
    let seconds = seconds(SECONDS);
    sleep(Duration::from_secs(seconds)).await;
    let is_visited = async || visits.load(Ordering::Relaxed) > 1;
    assert!(eventually(Duration::from_secs(60), is_visited).await);
    let count = visits.load(Ordering::Relaxed);
    let (log, status) = (
        fs::read_to_string(&log).unwrap(),
        fs::read_to_string(configuration.join("serve.json")).unwrap(),
    );
    // The first pauses are shorter than a second, the others are one.
    assert!(
        count <= 6 + usize::try_from(seconds).unwrap(),
        "{count} visits in {seconds} s"
    );
    assert!(log.lines().count() < 20, "{} lines", log.lines().count());
    assert!(log.len() < 10_000, "{} bytes of log", log.len());
    assert!(!log.contains('\u{9b}') && !status.contains('\u{9b}'));
    assert!(status.len() < 10_000, "{} bytes of status", status.len());
    let memory = peak_memory(&serving.0).unwrap();
    assert!(memory < 96 * 1024, "{memory} KiB");
}
