//! Clients that give up while an answer is open.

use std::time::Duration;

use harness::{HostData, RawClient, TestAgent, eventually, raw::Connection};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A full hang-up is noticed at once; the time is for a busy computer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks, and waits until the answer has begun if `begins`.
async fn open(client: &RawClient, path: &str, begins: bool) -> Connection {
    let mut stream = client.connect().await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    if begins {
        stream.read_u8().await.unwrap();
    }
    stream
}

/// The agent's own count of its connections, without the one that asks.
async fn others(client: &RawClient) -> usize {
    let metrics = client.get("/metrics").await.body;
    let line = metrics.as_str().unwrap().lines();
    let mut numbers = line.filter_map(|line| line.strip_prefix("vsock_agent_connections "));
    let connections: usize = numbers.next().unwrap().parse().unwrap();
    connections - 1
}

async fn are_gone(client: &RawClient) -> bool {
    eventually(PATIENCE, async || others(client).await == 0).await
}

#[tokio::test]
async fn abandoned_operation_wait_ends() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let exec = client.exec(&["cat"], json!({})).await;
    // Those that became websockets are counted with the command.
    assert!(are_gone(&client).await);
    for path in ["wait", "wait?timeout=86400"] {
        let path = format!("/1.0/operations/{}/{path}", exec.id);
        let waiting = open(&client, &path, false).await;
        let is_there = async || others(&client).await == 1;
        assert!(eventually(PATIENCE, is_there).await, "{path}");
        drop(waiting);
        assert!(are_gone(&client).await, "{path}");
    }
}

#[tokio::test]
async fn abandoned_event_stream_ends() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let listening = open(&client, "/1.0/events", true).await;
    assert_eq!(others(&client).await, 1);
    drop(listening);
    assert!(are_gone(&client).await);
}

#[tokio::test]
async fn disconnected_guest_api_listeners_free_their_slots() {
    let (_agent, _host, client) = crate::guest_api::start(HostData::default()).await;
    for round in 0..3 {
        let mut listeners = Vec::new();
        for _ in 0..32 {
            listeners.push(open(&client, "/1.0/events", true).await);
        }
        let (head, _) = crate::wire::ask(&client, "GET", "/1.0/events").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{round}: {head}");
        drop(listeners);
        let has_room = async || {
            let mut stream = client.connect().await;
            let request = b"GET /1.0/events HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            &status == b"HTTP/1.1 200"
        };
        assert!(eventually(PATIENCE, has_room).await, "{round}");
        let mut stream = open(&client, "/1.0/events", true).await;
        stream.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn half_closed_client_gets_its_reply() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut exec = client.exec(&["cat"], json!({})).await;
    assert!(are_gone(&client).await);
    let path = format!("/1.0/operations/{}/wait", exec.id);
    let mut waiting = open(&client, &path, false).await;
    waiting.shutdown().await.unwrap();
    // Longer than the longest pause between two looks at it.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(others(&client).await, 1);
    exec.end_input().await;
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\"return\":0"), "{answer}");
}

#[tokio::test]
async fn changing_request_completes_after_its_client_disconnects() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut events = client.websocket("/1.0/events?type=mine").await.unwrap();
    for _ in 0..20 {
        let mut stream = client.connect().await;
        let body = r#"{"type":"mine","metadata":{}}"#;
        let request = format!(
            "POST /1.0/events HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        drop(stream);
        loop {
            let message = futures_util::StreamExt::next(&mut events).await;
            if message.unwrap().unwrap().is_text() {
                break;
            }
        }
    }
}
