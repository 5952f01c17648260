//! What makes no sense gets a clear answer or a closed connection, and nobody else notices.

use std::time::Duration;

use harness::{RawClient, TestAgent};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// The agent's deadline for a head, and some time for a busy machine.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);

fn start() -> (TestAgent, RawClient) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    (agent, client)
}

#[tokio::test]
async fn invalid_requests_are_refused_with_a_reason() {
    let (_agent, client) = start();
    let unknown = "/1.0/operations/01234567-89ab-4cde-8f01-23456789abcd";
    for (method, path, body, status) in [
        ("POST", "/1.0/exec", "{", 400),
        ("POST", "/1.0/exec", "[]", 400),
        (
            "POST",
            "/1.0/exec",
            r#"{"command":"ls","wait-for-websocket":true}"#,
            400,
        ),
        (
            "POST",
            "/1.0/exec",
            r#"{"command":[],"wait-for-websocket":true}"#,
            400,
        ),
        (
            "POST",
            "/1.0/exec",
            r#"{"command":[""],"wait-for-websocket":true}"#,
            400,
        ),
        ("POST", "/1.0/exec", r#"{"command":["ls"]}"#, 400),
        (
            "POST",
            "/1.0/exec",
            r#"{"command":["ls"],"wait-for-websocket":true,"user":-1}"#,
            400,
        ),
        (
            "POST",
            "/1.0/exec",
            r#"{"command":["a\u0000b"],"wait-for-websocket":true}"#,
            400,
        ),
        (
            "POST",
            "/1.0/exec",
            r#"{"command":["ls"],"wait-for-websocket":true,"user_name":"no one"}"#,
            400,
        ),
        ("GET", "/1.0/exec", "", 405),
        ("GET", "/1.0/nothing", "", 404),
        ("GET", "/1.0/", "", 404),
        ("GET", "/1.0/operations/1", "", 404),
        ("GET", unknown, "", 404),
        ("DELETE", unknown, "", 404),
        ("GET", "/1.0/sftp", "", 400),
    ] {
        let reply = client.request(method, path, body).await;
        assert_eq!(reply.status, status, "{method} {path} {body}: {reply:?}");
        assert_eq!(reply.body["error_code"], json!(status), "{reply:?}");
        assert!(
            !reply.body["error"].as_str().unwrap().is_empty(),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn oversized_body_is_refused_before_it_is_read() {
    let (_agent, client) = start();
    let head = "POST /1.0/exec HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{";
    assert_eq!(client.send(head).await.status, 413);
}

#[tokio::test]
async fn head_over_64_kib_is_refused_however_it_is_split() {
    let (_agent, client) = start();
    let ask = async |filler: usize| {
        // One header may be as long as all of them.
        let filler = "x".repeat(filler);
        let head =
            format!("GET /1.0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nA: {filler}\r\n\r\n");
        client.send(&head).await.status
    };
    assert_eq!(ask(60 * 1024).await, 200);
    for kib in [64, 65, 80, 100, 126, 200] {
        assert_eq!(ask(kib * 1024).await, 431, "{kib} KiB");
    }
    let many = (0..200).fold(String::new(), |text, n| text + &format!("a{n}: b\r\n"));
    let head = format!("GET /1.0 HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    assert_eq!(client.send(&head).await.status, 431);
}

#[tokio::test]
async fn incomplete_head_times_out_without_affecting_other_sessions() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    let mut stream = client.connect().await;
    stream.write_all(b"GET /1.0 HTTP/1.1\r\nHo").await.unwrap();
    let mut rest = Vec::new();
    let ended = timeout(HEAD_DEADLINE, stream.read_to_end(&mut rest)).await;
    ended.expect("the connection should be closed").unwrap();
    exec.send(b"still here").await;
    exec.end_input().await;
    assert_eq!(exec.read_all("1").await, b"still here");
}

#[tokio::test]
async fn non_http_data_closes_the_connection() {
    let (_agent, client) = start();
    for nonsense in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\r\n\r\n",
    ] {
        let status = client.send(nonsense).await.status;
        assert!(matches!(status, 0 | 400), "{nonsense:?}: {status}");
    }
    assert_eq!(client.get("/1.0").await.status, 200);
}

#[tokio::test]
async fn invalid_control_messages_are_ignored() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    for message in [
        json!("x"),
        json!({}),
        json!({ "command": "fly" }),
        json!({ "command": "signal", "signal": 0 }),
        json!({ "command": "signal", "signal": 1e9 }),
        json!({ "command": "window-resize", "args": { "width": "-1", "height": "x" } }),
    ] {
        exec.control(message).await;
    }
    exec.end_input().await;
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
}
