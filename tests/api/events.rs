//! Events, by websocket and as lines.

use futures_util::StreamExt;
use harness::{RawClient, TestAgent};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::test]
async fn a_listener_hears_a_command_start_and_end_without_its_secrets() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut events = client
        .websocket("/1.0/events?type=operation")
        .await
        .unwrap();
    let exec = client.exec(&["sh", "-c", "exit 3"], json!({})).await;
    let mut statuses = Vec::new();
    while statuses.last() != Some(&json!("Success")) {
        let message = events.next().await.unwrap().unwrap();
        if !message.is_text() {
            continue;
        }
        let event: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert_eq!(event["type"], json!("operation"));
        assert_eq!(event["metadata"]["id"], json!(exec.id));
        assert_eq!(event["metadata"]["metadata"]["fds"], json!({}));
        if event["metadata"]["status"] == json!("Success") {
            assert_eq!(event["metadata"]["metadata"]["return"], json!(3));
        }
        statuses.push(event["metadata"]["status"].clone());
    }
    assert_eq!(statuses, [json!("Running"), json!("Success")]);
}

#[tokio::test]
async fn without_a_websocket_events_are_lines() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut stream = client.connect().await;
    stream
        .write_all(b"GET /1.0/events HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut lines = BufReader::new(stream).lines();
    // The head must be there before the command starts, or its event is missed.
    while !lines.next_line().await.unwrap().unwrap().is_empty() {}
    let exec = client.exec(&["true"], json!({})).await;
    loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && event.is_object()
        {
            assert_eq!(event["metadata"]["id"], json!(exec.id));
            break;
        }
    }
}
