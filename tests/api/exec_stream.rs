//! Commands on one HTTP/2 stream, frame by frame: `protocol/exec-stream.md`.

use std::{path::Path, thread, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use harness::{
    Pair, RawClient, TestAgent, TestFolder, eventually,
    http2::{RawHttp2, StreamExec, command_frame},
};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};
use vsock_agent::{Feature, Features, Security};
use vsock_agent_client::{self as client, Client};
use vsock_agent_protocol::exec::stream::{DataChannel, Frame, INPUT_WINDOW_BYTES};

const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> (TestAgent, RawHttp2) {
    let agent = TestAgent::start();
    let connection = RawHttp2::open(&RawClient::new(&agent.socket())).await;
    (agent, connection)
}

/// A shell that prints its process id, and then does `script`.
async fn shell(connection: &RawHttp2, script: &str, more: Value) -> (StreamExec, i32) {
    let script = format!("echo $$; {script}");
    let mut exec = connection.exec(&["sh", "-c", &script], more).await;
    exec.read_until("\n").await;
    let pid = String::from_utf8_lossy(&exec.outputs[0]);
    let pid = pid.trim().parse().unwrap();
    (exec, pid)
}

/// Whether a process runs; a zombie has ended.
fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn ends(pid: i32) {
    let has_ended = async || !is_running(pid);
    assert!(eventually(PATIENCE, has_ended).await, "{pid} is running");
}

async fn has_text(path: &Path, text: &str) {
    let has = async || std::fs::read_to_string(path).is_ok_and(|read| read == text);
    assert!(eventually(PATIENCE, has).await, "no {text:?} in {path:?}");
}

#[tokio::test]
async fn the_status_is_the_last_frame_after_all_output() {
    let (_agent, connection) = start().await;
    let script = "echo out; echo err >&2; exit 7";
    let mut exec = connection.exec(&["sh", "-c", script], json!({})).await;
    let (mut closed, mut status) = (Vec::new(), None);
    while let Some(frame) = exec.try_next().await.unwrap() {
        assert!(status.is_none(), "{frame:?} after the status");
        match frame {
            Frame::Close(channel) => closed.push(channel),
            Frame::Data(channel, _) => assert!(!closed.contains(&channel)),
            Frame::Status(json) => status = Some(serde_json::from_slice::<Value>(&json).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(exec.outputs, [b"out\n".to_vec(), b"err\n".to_vec()]);
    assert!(closed.contains(&DataChannel::Stdout) && closed.contains(&DataChannel::Stderr));
    let status = status.unwrap();
    assert_eq!(status["metadata"]["return"], json!(7));
    assert_eq!(status["metadata"]["bytes"]["1"], json!(4));
    assert_eq!(status["metadata"]["bytes"]["2"], json!(4));
    let (_, operation) = connection.call(Method::GET, &exec.location).await;
    assert_eq!(operation["metadata"], status);
}

#[tokio::test]
async fn the_operation_is_listed_and_deleting_it_ends_the_command() {
    let (_agent, connection) = start().await;
    let (mut exec, pid) = shell(&connection, "exec sleep 1000", json!({})).await;
    let (_, list) = connection.call(Method::GET, "/1.0/operations").await;
    assert_eq!(list["metadata"], json!({ "running": [exec.location] }));
    let (status, _) = connection.call(Method::DELETE, &exec.location).await;
    assert_eq!(status, StatusCode::OK);
    let end = exec.finish().await;
    assert_eq!(end["status"], json!("Cancelled"));
    ends(pid).await;
}

#[tokio::test]
async fn a_command_that_cannot_start_is_127_or_126() {
    let (_agent, connection) = start().await;
    for (command, code, kind) in [
        ("/no/such", 127, "not-found"),
        ("/etc/passwd", 126, "not-executable"),
    ] {
        let mut exec = connection.exec(&[command], json!({})).await;
        let end = exec.finish().await;
        assert_eq!(end["status_code"], json!(400), "{command}");
        assert_eq!(end["metadata"]["return"], json!(code), "{command}");
        assert_eq!(end["metadata"]["start_error"], json!(kind), "{command}");
    }
}

#[tokio::test]
async fn a_wrong_request_is_refused_before_it_is_a_command() {
    let (_agent, connection) = start().await;
    for frames in [
        vec![],
        vec![Frame::Signal(15)],
        vec![Frame::Data(
            DataChannel::Stdin,
            Bytes::from_static(b"early"),
        )],
        vec![Frame::Request(Bytes::from_static(b"{"))],
        vec![command_frame(&[], json!({}))],
        vec![command_frame(
            &["true"],
            json!({ "user_name": "no-such-user" }),
        )],
    ] {
        let (status, body) = connection.post(&frames).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{frames:?}: {body}");
        assert_eq!(body["type"], json!("error"), "{frames:?}: {body}");
    }
    let (_, list) = connection.call(Method::GET, "/1.0/operations").await;
    assert_eq!(list["metadata"], json!({}));
}

#[tokio::test]
async fn a_forbidden_command_is_403() {
    let agent = TestAgent::configured(|config| {
        config.features = Features::only([Feature::State]);
    });
    let connection = RawHttp2::open(&RawClient::new(&agent.socket())).await;
    let (status, body) = connection
        .post(&[command_frame(&["true"], json!({}))])
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
}

#[tokio::test]
async fn http1_is_505() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let reply = client.request("POST", "/1.0/exec-stream", "").await;
    assert_eq!(reply.status, 505, "{reply:?}");
}

#[tokio::test]
async fn the_end_of_the_request_is_the_end_of_the_input() {
    let (_agent, connection) = start().await;
    let mut exec = connection.exec(&["cat"], json!({})).await;
    exec.input("hello");
    exec.end();
    let end = exec.finish().await;
    assert_eq!(exec.outputs[0], b"hello");
    assert_eq!(end["metadata"]["return"], json!(0));
    assert_eq!(end["metadata"]["bytes"]["0"], json!(5));
}

#[tokio::test]
async fn close_0_ends_the_input_and_signals_still_come() {
    let (_agent, connection) = start().await;
    let script = "cat; trap 'exit 9' TERM; echo trapped; while :; do sleep 0.05; done";
    let mut exec = connection.exec(&["sh", "-c", script], json!({})).await;
    exec.input("hello\n");
    exec.send(&Frame::Close(DataChannel::Stdin));
    exec.read_until("hello\ntrapped\n").await;
    exec.send(&Frame::Signal(15));
    assert_eq!(exec.finish().await["metadata"]["return"], json!(9));
}

#[tokio::test]
async fn an_aborted_input_ends_the_command_which_sees_no_end_of_it() {
    let (_agent, connection) = start().await;
    let folder = TestFolder::new("abort");
    let mark = folder.path().join("end");
    let script = format!("cat; echo end >{}", mark.display());
    let (mut exec, pid) = shell(&connection, &script, json!({})).await;
    exec.input("hello\n");
    exec.read_until("hello\n").await;
    exec.send(&Frame::Abort);
    let end = exec.finish().await;
    assert_eq!(end["status_code"], json!(400), "{end}");
    assert_eq!(end["metadata"]["input_lost"], json!(6), "{end}");
    ends(pid).await;
    assert!(!mark.exists());
}

/// How a client is lost.
const LOSSES: [&str; 3] = ["reset", "connection", "wrong frame"];

async fn lose(how: &str, exec: StreamExec, connection: RawHttp2) {
    match how {
        "reset" => exec.reset(),
        "connection" => connection.close().await,
        _ => exec.send_bytes(Bytes::from_static(b"\x0b\x00\x00\x00")),
    }
}

#[tokio::test]
async fn a_lost_client_ends_its_command() {
    for how in LOSSES {
        let (_agent, connection) = start().await;
        let (exec, pid) = shell(&connection, "exec sleep 1000", json!({})).await;
        let other = RawHttp2::open(&RawClient::new(&_agent.socket())).await;
        let location = exec.location.clone();
        lose(how, exec, connection).await;
        let wait = format!("{location}/wait");
        let (_, end) = other.call(Method::GET, &wait).await;
        assert_eq!(
            end["metadata"]["metadata"]["signal"],
            json!(1),
            "{how}: {end}"
        );
        ends(pid).await;
    }
}

#[tokio::test]
async fn a_lost_client_hangs_up_or_leaves_its_command() {
    for how in LOSSES {
        for (mode, text) in [("hangup", "hup\n"), ("keep", "")] {
            let (_agent, connection) = start().await;
            let folder = TestFolder::new("lost");
            let (heard, go) = (folder.path().join("heard"), folder.path().join("go"));
            let script = format!(
                "exec 2>/dev/null; trap 'echo hup >>{heard}' HUP; touch {heard}; echo ready; \
                 until test -e {go}; do yes | head -c 3000000 || :; sleep 0.05; done; echo end >>{heard}",
                heard = heard.display(),
                go = go.display(),
            );
            let more = json!({ "vsock_agent_on_disconnect": mode });
            let (mut exec, pid) = shell(&connection, &script, more).await;
            exec.read_until("ready\n").await;
            lose(how, exec, connection).await;
            has_text(&heard, text).await;
            std::fs::write(&go, "").unwrap();
            has_text(&heard, &format!("{text}end\n")).await;
            ends(pid).await;
        }
    }
}

#[tokio::test]
async fn the_agent_says_when_a_command_closes_its_input() {
    let (_agent, connection) = start().await;
    let script = "exec <&-; echo closed; exec sleep 1000";
    let mut exec = connection.exec(&["sh", "-c", script], json!({})).await;
    exec.read_until("closed").await;
    exec.input("too late");
    while exec.next().await != Frame::Close(DataChannel::Stdin) {}
    // More of it is ignored.
    exec.input("later");
    exec.ping().await;
    exec.send(&Frame::Signal(9));
    assert_eq!(exec.finish().await["metadata"]["return"], json!(137));
}

#[tokio::test]
async fn an_output_stops_at_its_window_and_goes_on_with_credit() {
    let (_agent, connection) = start().await;
    let script = "head -c 3000000 /dev/zero; echo end >&2";
    let mut exec = connection.exec(&["sh", "-c", script], json!({})).await;
    exec.fill_window().await;
    let before = exec.outputs[0].len();
    exec.send(&Frame::Credit(DataChannel::Stdout, 1));
    while exec.outputs[0].len() == before {
        exec.next().await;
    }
    exec.ping().await;
    assert_eq!(exec.outputs[0].len(), before + 1);
    exec.send(&Frame::Credit(DataChannel::Stdout, 3_000_000));
    let end = exec.finish().await;
    assert_eq!(end["metadata"]["bytes"], json!({ "1": 3_000_000, "2": 4 }));
    assert_eq!(exec.outputs[0].len(), 3_000_000);
}

#[tokio::test]
async fn more_credit_than_a_window_can_have_loses_the_client() {
    let (_agent, connection) = start().await;
    let (mut exec, pid) = shell(&connection, "exec sleep 1000", json!({})).await;
    exec.send(&Frame::Credit(DataChannel::Stdout, u32::MAX));
    exec.lost().await;
    ends(pid).await;
}

#[tokio::test]
async fn input_beyond_its_window_loses_the_client() {
    let (_agent, connection) = start().await;
    let window = usize::try_from(INPUT_WINDOW_BYTES).unwrap();
    let (mut exec, pid) = shell(&connection, "exec sleep 1000", json!({})).await;
    // Part of it is in the pipe, and no credit is due before half of the window is.
    exec.input(vec![0; window]);
    exec.ping().await;
    assert!(is_running(pid));
    exec.input(vec![0; 1]);
    exec.lost().await;
    ends(pid).await;
}

#[tokio::test]
async fn a_signal_overtakes_input_that_is_not_read() {
    let (_agent, connection) = start().await;
    let window = usize::try_from(INPUT_WINDOW_BYTES).unwrap();
    let (mut exec, _) = shell(&connection, "exec sleep 1000", json!({})).await;
    exec.input(vec![0; window]);
    exec.send(&Frame::Signal(15));
    assert_eq!(exec.finish().await["metadata"]["return"], json!(143));
}

#[tokio::test]
async fn all_input_arrives_with_the_credit_of_the_agent() {
    let (_agent, connection) = start().await;
    let mut exec = connection.exec(&["cat"], json!({})).await;
    let data: Vec<u8> = (0..750_000_u32).flat_map(u32::to_be_bytes).collect();
    let mut window = usize::try_from(INPUT_WINDOW_BYTES).unwrap();
    let mut rest = &data[..];
    while !rest.is_empty() {
        while window == 0 {
            if let Frame::Credit(DataChannel::Stdin, more) = exec.next().await {
                window += usize::try_from(more).unwrap();
            }
        }
        let (now, later) = rest.split_at(window.min(rest.len()).min(70_001));
        exec.input(now.to_vec());
        window -= now.len();
        rest = later;
    }
    exec.end();
    let end = exec.finish().await;
    assert_eq!(end["metadata"]["bytes"]["0"], json!(3_000_000));
    assert!(exec.outputs[0] == data, "{} bytes", exec.outputs[0].len());
}

#[tokio::test]
async fn pongs_come_in_the_order_of_their_pings_after_what_was_before() {
    let (_agent, connection) = start().await;
    let (mut exec, _) = shell(&connection, "exec cat", json!({})).await;
    let pings = ["1", "", "12345678", "4"].map(Bytes::from);
    for payload in &pings {
        exec.send(&Frame::Ping(payload.clone()));
    }
    for payload in &pings {
        assert_eq!(exec.next().await, Frame::Pong(payload.clone()));
    }
}

#[tokio::test]
async fn a_terminal_has_its_size_and_follows_resizes() {
    let (_agent, connection) = start().await;
    let more = json!({ "interactive": true, "width": 100, "height": 30 });
    let script =
        "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut exec = connection.exec(&["sh", "-c", script], more).await;
    exec.read_until("ready\r\n").await;
    exec.send(&Frame::Resize {
        columns: 120,
        lines: 40,
    });
    let end = exec.finish().await;
    assert_eq!(end["metadata"]["return"], json!(3));
    assert_eq!(exec.outputs[0], b"30 100\r\nready\r\n40 120\r\n");
    assert!(exec.outputs[1].is_empty());
}

#[tokio::test]
async fn an_output_that_nobody_reads_stops_no_other_command() {
    let (_agent, connection) = start().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut exec = connection.exec(&["yes"], json!({})).await;
        exec.grants = false;
        stalled.push(exec);
    }
    stalled[0].fill_window().await;
    let others = (0..50).map(async |number| {
        let script = format!("cat; echo {number}");
        let mut exec = connection.exec(&["sh", "-c", &script], json!({})).await;
        exec.end();
        exec.finish().await;
        assert_eq!(exec.outputs[0], format!("{number}\n").into_bytes());
    });
    join_all(others).await;
}

/// Frames of an output may be small, and many of them may wait for a slow connection.
#[tokio::test]
async fn a_ping_behind_many_small_outputs_is_answered() {
    let agent = TestAgent::start();
    let connection = RawHttp2::with_window(&RawClient::new(&agent.socket()), 1024).await;
    // A system call for each byte.
    let script = "dd if=/dev/zero bs=1 count=20000 2>/dev/null; exec cat";
    let mut exec = connection.exec(&["sh", "-c", script], json!({})).await;
    let other = RawHttp2::open(&RawClient::new(&agent.socket())).await;
    let wait = format!("{}/wait?timeout=3", exec.location);
    // The agent has read all of it by then, or as much as it stores.
    other.call(Method::GET, &wait).await;
    exec.ping().await;
    exec.end();
    let end = exec.finish().await;
    assert_eq!(end["metadata"]["bytes"]["1"], json!(20_000));
}

#[tokio::test]
async fn pings_whose_answers_are_not_read_lose_the_client() {
    let agent = TestAgent::start();
    let connection = RawHttp2::with_window(&RawClient::new(&agent.socket()), 1024).await;
    let (exec, pid) = shell(&connection, "exec sleep 1000", json!({})).await;
    for _ in 0..100_000 {
        exec.send(&Frame::Ping(Bytes::from_static(b"12345678")));
    }
    ends(pid).await;
}

#[tokio::test]
async fn events_files_and_ports_are_extended_connects() {
    let (_agent, connection) = start().await;
    connection.call(Method::GET, "/1.0").await;
    let mut events = connection
        .connect("/1.0/events?type=operation", "websocket")
        .await;
    let mut exec = connection.exec(&["true"], json!({})).await;
    exec.finish().await;
    let (mut read, status) = (Vec::new(), "\"status\":\"Success\"");
    while !String::from_utf8_lossy(&read).contains(status) {
        events.read_buf(&mut read).await.unwrap();
    }

    let mut sftp = connection.connect("/1.0/sftp", "sftp").await;
    let version = [0, 0, 0, 5, 1, 0, 0, 0, 3];
    sftp.write_all(&version).await.unwrap();
    let mut reply = [0; 9];
    sftp.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[4..], [2, 0, 0, 0, 3]);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let path = format!("/1.0/port-forward?address=127.0.0.1&port={port}");
    let (mut near, far) = tokio::join!(connection.connect(&path, "tcp"), listener.accept());
    let (mut far, _) = far.unwrap();
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    far.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut answer = String::new();
    near.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_ends_its_commands_or_leaves_them() {
    for end_commands in [true, false] {
        let mut agent = TestAgent::configured(|config| config.end_commands = end_commands);
        let connection = RawHttp2::open(&RawClient::new(&agent.socket())).await;
        let (mut exec, pid) = shell(&connection, "exec sleep 1000", json!({})).await;
        agent.stop();
        assert_eq!(is_running(pid), !end_commands);
        timeout(PATIENCE, exec.lost()).await.unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

#[tokio::test]
async fn tls_chooses_http2_by_alpn() {
    let (host, own) = (Pair::lxd(), Pair::lxd());
    let agent = TestAgent::start_with(|folder| {
        own.write_agent(folder, &[&host]);
        Security::Tls(folder.to_owned())
    });
    let client = RawClient::new(&agent.socket()).with_tls(&host, &own);
    let connection = RawHttp2::open(&client.clone().with_http2()).await;
    let mut exec = connection.exec(&["echo", "hello"], json!({})).await;
    exec.finish().await;
    assert_eq!(exec.outputs[0], b"hello\n");
    assert_eq!(client.get("/1.0").await.status, 200);
}

/// HTTP/1.1 has the same deadline for its first request.
#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut connection = RawHttp2::open(&client).await;
    let mut begun = client.connect().await;
    begun.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    timeout(PATIENCE, connection.closed()).await.unwrap();
    let mut rest = Vec::new();
    // A reset is as good an end as any.
    let _ = timeout(PATIENCE, begun.read_to_end(&mut rest))
        .await
        .unwrap();
}

/// A program that computes for a while does not read meanwhile, and then gets all at once.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "nothing of the runtime may run")]
async fn small_outputs_that_wait_for_the_program_do_not_end_the_connection() {
    let agent = TestAgent::start();
    let client = Client::new(agent.endpoint().parse().unwrap(), client::Security::Plain);
    let mut outputs = JoinSet::new();
    for _ in 0..16 {
        let script = "dd if=/dev/zero bs=1 count=50000 2>/dev/null";
        outputs.spawn(client.exec("sh", ["-c", script]).output());
    }
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        thread::sleep(Duration::from_millis(300));
    }
    while let Some(output) = outputs.join_next().await {
        assert_eq!(output.unwrap().unwrap().stdout.len(), 50_000);
        thread::sleep(Duration::from_millis(300));
    }
}
