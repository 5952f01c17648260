//! Events, by websocket and as lines.

use futures_util::StreamExt;
use harness::{RawClient, TestAgent};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::test]
async fn operation_events_have_no_secrets() {
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
        let metadata = &event["metadata"]["metadata"];
        if event["metadata"]["status"] == json!("Success") {
            assert_eq!(metadata["return"], json!(3));
            assert_eq!(metadata.get("fds"), None);
        } else {
            assert_eq!(metadata["fds"], json!({}));
        }
        statuses.push(event["metadata"]["status"].clone());
    }
    assert_eq!(statuses, [json!("Running"), json!("Success")]);
}

#[tokio::test]
async fn events_without_websocket_are_lines() {
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

/// Hosts of LXD 5.0 know the end of a command by its event only, and listen once for each command.
#[tokio::test]
async fn many_listeners_see_many_commands_end() {
    const COMMANDS: usize = 250;
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let start = async || {
        let events = client.websocket("/1.0/events?type=operation").await;
        let reply = client.post_exec(&["true"], json!({})).await.body;
        (
            events.unwrap(),
            reply["operation"].as_str().unwrap().to_owned(),
        )
    };
    let mut commands = Vec::new();
    for _ in 0..COMMANDS {
        commands.push(start().await);
    }
    // Four connections at a time, so that the ends come as fast as they can.
    let paths = commands
        .iter()
        .map(|(_, path)| client.request("DELETE", path, ""));
    let delete = futures_util::stream::iter(paths).buffer_unordered(4);
    let replies: Vec<_> = delete.collect().await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    let hear = commands.into_iter().map(async |(mut events, path)| {
        loop {
            let operation = next_event(&mut events).await["metadata"].take();
            if path.ends_with(operation["id"].as_str().unwrap())
                && operation["status_code"].as_u64().unwrap() >= 200
            {
                return;
            }
        }
    });
    futures_util::future::join_all(hear).await;
}

/// The next event on a websocket.
pub(crate) async fn next_event(socket: &mut harness::raw::Socket) -> Value {
    loop {
        let message = socket.next().await.unwrap().unwrap();
        if message.is_text() {
            return serde_json::from_str(message.to_text().unwrap()).unwrap();
        }
    }
}

#[tokio::test]
async fn listener_receives_the_largest_event() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut events = client.websocket("/1.0/events").await.unwrap();
    let large = json!({ "key": "user.a", "value": "x".repeat(2 * 1024 * 1024) });
    for metadata in [&large, &json!("small")] {
        let event = json!({ "type": "config", "metadata": metadata }).to_string();
        // The answer and the event are on connections of their own.
        let (reply, heard) = tokio::join!(
            client.request("POST", "/1.0/events", &event),
            next_event(&mut events)
        );
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(heard["metadata"] == *metadata);
    }
}

#[tokio::test]
async fn posted_event_reaches_listeners_of_its_type() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let mut all = client.websocket("/1.0/events").await.unwrap();
    let escaped = "/1.0/events?type=lifecycle%2C%64evice";
    let mut some = client.websocket(escaped).await.unwrap();
    let config = json!({ "key": "user.a", "old_value": "", "value": "1" });
    let device = json!({ "action": "added", "name": "disk1" });
    for (kind, metadata) in [("config", &config), ("device", &device)] {
        let event = json!({
            "type": kind, "metadata": metadata, "timestamp": "0001-01-01T00:00:00Z",
            "location": "elsewhere",
        });
        let reply = client
            .request("POST", "/1.0/events", &event.to_string())
            .await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.body["metadata"], Value::Null);
    }
    let first = next_event(&mut all).await;
    assert_eq!(
        (&first["type"], &first["metadata"]),
        (&json!("config"), &config)
    );
    assert_eq!(first.get("location"), None);
    let timestamp = first["timestamp"].as_str().unwrap();
    assert!(timestamp.starts_with("20"), "{timestamp}");
    assert_eq!(next_event(&mut all).await["metadata"], device);
    assert_eq!(next_event(&mut some).await["metadata"], device);
}

#[tokio::test]
async fn invalid_posted_event_is_refused() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    for body in ["", "{", "[]", "{}", r#"{"type":""}"#, r#"{"type":1}"#] {
        let reply = client.request("POST", "/1.0/events", body).await;
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
    }
}
