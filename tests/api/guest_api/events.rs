//! Changes, as programs in the guest hear of them.

use harness::{HostData, RawClient, TestAgent};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{put, start};
use crate::events::next_event;

async fn post(agent: &TestAgent, kind: &str, metadata: &Value) {
    let event = json!({ "type": kind, "metadata": metadata }).to_string();
    let host = RawClient::new(&agent.socket());
    assert_eq!(
        host.request("POST", "/1.0/events", &event).await.status,
        200
    );
}

#[tokio::test]
async fn config_event_follows_the_new_value() {
    let (agent, host, guest) = start(HostData::with(&[("user.a", "old")])).await;
    let mut events = guest.websocket("/1.0/events").await.unwrap();
    host.change(|data| drop(data.config.insert("user.a".to_owned(), "new".to_owned())));
    let change = json!({ "key": "user.a", "old_value": "old", "value": "new" });
    post(&agent, "config", &change).await;
    let event = next_event(&mut events).await;
    assert_eq!(
        (&event["type"], &event["metadata"]),
        (&json!("config"), &change)
    );
    assert_eq!(guest.get("/1.0/config/user.a").await.body, json!("new"));
}

#[tokio::test]
async fn missed_config_changes_are_sent_once() {
    let (agent, host, guest) = start(HostData::with(&[("user.a", "old")])).await;
    let mut events = guest.websocket("/1.0/events").await.unwrap();
    host.change(|data| drop(data.config.insert("user.a".to_owned(), "new".to_owned())));
    put(&agent, "", true).await;
    let change = json!({ "key": "user.a", "old_value": "old", "value": "new" });
    assert_eq!(next_event(&mut events).await["metadata"], change);
    assert_eq!(guest.get("/1.0/config/user.a").await.body, json!("new"));
    post(&agent, "config", &change).await;
    let other = json!({ "key": "user.b", "old_value": "", "value": "1" });
    post(&agent, "config", &other).await;
    assert_eq!(next_event(&mut events).await["metadata"], other);
}

#[tokio::test]
async fn config_events_are_ordered_and_filtered() {
    let (agent, _host, guest) = start(HostData::default()).await;
    let mut all = guest
        .websocket("/1.0/events?type=config,device")
        .await
        .unwrap();
    let mut devices = guest.websocket("/1.0/events?type=device").await.unwrap();
    for number in 0..20 {
        post(
            &agent,
            "config",
            &json!({ "key": "user.a", "value": number }),
        )
        .await;
    }
    post(
        &agent,
        "device",
        &json!({ "action": "added", "name": "eth1" }),
    )
    .await;
    for number in 0..20 {
        assert_eq!(
            next_event(&mut all).await["metadata"]["value"],
            json!(number)
        );
    }
    assert_eq!(next_event(&mut all).await["type"], json!("device"));
    assert_eq!(
        next_event(&mut devices).await["metadata"]["name"],
        json!("eth1")
    );
}

#[tokio::test]
async fn guest_api_events_exclude_host_operations() {
    let (agent, _host, guest) = start(HostData::default()).await;
    let mut events = guest
        .websocket("/1.0/events?type=operation,logging,lifecycle,config")
        .await
        .unwrap();
    let host = RawClient::new(&agent.socket());
    let secret = json!({ "environment": { "TOKEN": "secret" } });
    host.exec(&["true"], secret).await.wait().await;
    for kind in ["lifecycle", "logging", "operation"] {
        post(&agent, kind, &json!({ "of": "the host" })).await;
    }
    post(&agent, "config", &json!({ "key": "user.a" })).await;
    let first = next_event(&mut events).await;
    assert_eq!(first["type"], json!("config"), "{first}");
}

#[tokio::test]
async fn guest_api_events_without_websocket_are_lines() {
    let (agent, _host, guest) = start(HostData::default()).await;
    let mut stream = guest.connect().await;
    let request = b"GET /1.0/events HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !lines.next_line().await.unwrap().unwrap().is_empty() {}
    post(
        &agent,
        "device",
        &json!({ "action": "removed", "name": "eth1" }),
    )
    .await;
    loop {
        let line = lines.next_line().await.unwrap().unwrap();
        // Lengths of chunks are between the lines.
        if line.starts_with('{') {
            let event: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(event["metadata"]["action"], json!("removed"));
            break;
        }
    }
}
