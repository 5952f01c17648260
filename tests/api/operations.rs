//! Operations: what is listed, waited for, joined and cancelled.

use std::time::Duration;

use futures_util::SinkExt;
use harness::{RawClient, TestAgent};
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

fn start() -> (TestAgent, RawClient) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    (agent, client)
}

#[tokio::test]
async fn operation_list_has_no_secrets() {
    let (_agent, client) = start();
    let exec = client
        .exec(
            &["sleep", "1000"],
            json!({ "environment": { "A": "hidden" } }),
        )
        .await;
    let list = client.get("/1.0/operations").await.body;
    assert_eq!(
        list["metadata"],
        json!({ "running": [format!("/1.0/operations/{}", exec.id)] })
    );
    let whole = client.get("/1.0/operations?recursion=1").await.body;
    let operation = &whole["metadata"]["running"][0];
    assert_eq!(operation["metadata"]["command"], json!(["sleep", "1000"]));
    assert_eq!(operation["metadata"]["fds"], json!({}));
    assert!(!whole.to_string().contains("hidden"), "{whole}");
}

#[tokio::test]
async fn very_long_command_is_shown_by_its_program_only() {
    let (_agent, client) = start();
    let long = "x".repeat(100_000);
    let command = ["true", &long, &long];
    let reply = client.post_exec(&command, json!({})).await.body;
    assert!(reply["metadata"]["metadata"]["command"] == json!(command));
    let path = reply["operation"].as_str().unwrap();
    let shown = client.get(path).await.body["metadata"]["metadata"].clone();
    assert!(shown["command"] == json!(["true"]));
}

#[tokio::test]
async fn cancelling_an_operation_ends_its_command() {
    let (_agent, client) = start();
    let script = "echo up; exec sleep 1000";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    exec.read_until("1", "up").await;
    let path = format!("/1.0/operations/{}", exec.id);
    assert_eq!(client.request("DELETE", &path, "").await.status, 200);
    let end = exec.wait().await;
    assert_eq!(
        (&end["status"], &end["metadata"]["return"]),
        (&json!("Cancelled"), &json!(129))
    );
    assert_eq!(client.request("DELETE", &path, "").await.status, 400);
}

#[tokio::test]
async fn ended_operation_remains_available() {
    let (_agent, client) = start();
    let exec = client.exec(&["false"], json!({})).await;
    let end = exec.wait().await;
    assert_eq!(
        client
            .get(&format!("/1.0/operations/{}", exec.id))
            .await
            .body["metadata"],
        end
    );
}

#[tokio::test]
async fn operation_wait_times_out_with_the_current_state() {
    let (_agent, client) = start();
    let exec = client.exec(&["sleep", "1000"], json!({})).await;
    let path = format!("/1.0/operations/{}/wait?timeout=0", exec.id);
    assert_eq!(client.get(&path).await.status, 504);
}

#[tokio::test]
async fn secret_joins_one_socket_once() {
    let (_agent, client) = start();
    let reply = client.post_exec(&["true"], json!({})).await.body;
    let id = reply["metadata"]["id"].as_str().unwrap();
    let secret = reply["metadata"]["metadata"]["fds"]["1"].as_str().unwrap();
    let path = format!("/1.0/operations/{id}/websocket?secret=");
    assert_eq!(client.websocket(&path).await.unwrap_err(), 403);
    assert_eq!(
        client
            .websocket(&format!("{path}{}", "0".repeat(64)))
            .await
            .unwrap_err(),
        403
    );
    client.websocket(&format!("{path}{secret}")).await.unwrap();
    assert_eq!(
        client
            .websocket(&format!("{path}{secret}"))
            .await
            .unwrap_err(),
        403
    );
}

#[tokio::test]
async fn cancelled_command_with_a_stalled_client_becomes_final() {
    let (_agent, client) = start();
    // In this time it writes more than fits between the two.
    let exec = client.exec(&["yes"], json!({ "timeout": 3 })).await;
    // The agent waits a minute for the client to read something.
    let end = timeout(Duration::from_secs(180), exec.wait()).await;
    let end = end.expect("the operation never ends");
    assert_eq!(end["metadata"]["timed_out"], json!(true), "{end}");
    assert_eq!(end["metadata"]["output_complete"], json!(false), "{end}");
}

#[tokio::test]
async fn command_with_a_client_that_ignores_the_stdin_close_becomes_final() {
    let (_agent, client) = start();
    let script = "exec <&-; echo up; exec sleep 2";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    exec.read_until("1", "up").await;
    // Nobody reads the answers, which fill the socket.
    let input = exec.sockets.get_mut("0").unwrap();
    for _ in 0..5000 {
        input
            .send(Message::Ping(vec![0; 125].into()))
            .await
            .unwrap();
    }
    exec.send(b"input that nobody reads").await;
    let end = timeout(Duration::from_secs(60), exec.wait()).await;
    assert_eq!(
        end.expect("the operation never ends")["metadata"]["return"],
        json!(0)
    );
}
