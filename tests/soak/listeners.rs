//! Hosts of LXD 5.0 know the end of a command by its event only, and listen once for each command.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use harness::{AgentProcess, RawClient, raw::Socket};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

use crate::PATIENCE;

/// Commands at once, each with a listener of its own.
const COMMANDS: usize = 600;

/// Operations that one listener hears the end of.
const DELETES: usize = 1000;

/// Reads events until all of these operations have ended.
async fn hear_the_ends(events: &mut Socket, mut ids: BTreeSet<String>) {
    while !ids.is_empty() {
        let message = events.next().await.unwrap().unwrap();
        let Ok(text) = message.to_text() else {
            continue;
        };
        // Most of many events are of other operations.
        if !ids.iter().any(|id| text.contains(id.as_str())) {
            continue;
        }
        let event: Value = serde_json::from_str(text).unwrap_or_default();
        let operation = &event["metadata"];
        if operation["status_code"].as_u64() >= Some(200) {
            ids.remove(operation["id"].as_str().unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn six_hundred_listeners_each_see_their_command_end() {
    let agent = AgentProcess::start("listeners").await;
    let client = RawClient::new(&agent.socket());
    let mut commands = JoinSet::new();
    for _ in 0..COMMANDS {
        let client = client.clone();
        commands.spawn(async move {
            let mut events = client
                .websocket("/1.0/events?type=operation")
                .await
                .unwrap();
            let exec = client.exec(&["true"], json!({})).await;
            timeout(PATIENCE, hear_the_ends(&mut events, [exec.id].into())).await
        });
    }
    let heard = commands.join_all().await;
    let lost = heard.iter().filter(|heard| heard.is_err()).count();
    println!("{COMMANDS} commands at once: {lost} ends were not heard");
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_deleted_operations_are_reported() {
    let agent = AgentProcess::start("deletes").await;
    let client = RawClient::new(&agent.socket());
    let mut events = client
        .websocket("/1.0/events?type=operation")
        .await
        .unwrap();
    let mut ids = Vec::new();
    for _ in 0..DELETES {
        let reply = client.post_exec(&["true"], json!({})).await.body;
        ids.push(reply["metadata"]["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        let path = format!("/1.0/operations/{id}");
        let reply = client.request("DELETE", &path, "").await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let heard = hear_the_ends(&mut events, ids.into_iter().collect());
    timeout(PATIENCE, heard)
        .await
        .expect("an end was not heard");
}
