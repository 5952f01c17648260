//! What is where, and with which methods.

use harness::{RawClient, TestAgent};
use serde_json::{Value, json};

use crate::wire::{ask, header};

fn start() -> (TestAgent, RawClient) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    (agent, client)
}

#[tokio::test]
async fn wrong_method_is_405_with_allow() {
    let (_agent, client) = start();
    let operation = "/1.0/operations/01234567-89ab-4cde-8f01-23456789abcd";
    let wait = format!("{operation}/wait");
    for (method, path, allow) in [
        ("DELETE", "/1.0", "GET, HEAD, PUT"),
        ("OPTIONS", "/1.0", "GET, HEAD, PUT"),
        ("GET", "/1.0/exec", "POST"),
        ("PUT", "/1.0/events", "GET, HEAD, POST"),
        ("POST", "/1.0/sftp", "GET"),
        ("GET", "/1.0/port-forward", "POST"),
        ("PATCH", "/1.0/state", "GET, HEAD, PUT"),
        ("POST", "/1.0/metrics", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("PUT", "/1.0/operations", "GET, HEAD"),
        ("PUT", operation, "GET, HEAD, DELETE"),
        ("DELETE", &wait, "GET, HEAD"),
    ] {
        let (head, body) = ask(&client, method, path).await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{method} {path}: {head}");
        assert_eq!(header(&head, "allow"), Some(allow), "{method} {path}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error_code"], json!(405), "{method} {path}");
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["true"], json!({})).await;
    exec.end_input().await;
    exec.wait().await;
    let operation = format!("/1.0/operations/{}", exec.id);
    let wait = format!("{operation}/wait");
    for path in [
        "/1.0",
        "/1.0/events",
        "/1.0/state",
        "/1.0/metrics",
        "/metrics",
        "/1.0/operations",
        &operation,
        &wait,
    ] {
        let (head, body) = ask(&client, "HEAD", path).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        assert!(header(&head, "content-type").is_some(), "{path}: {head}");
        assert_eq!(body, "", "{path}");
    }
    for path in ["/1.0/exec", "/1.0/sftp", "/1.0/port-forward"] {
        let (head, body) = ask(&client, "HEAD", path).await;
        assert!(head.starts_with("HTTP/1.1 405 "), "{path}: {head}");
        assert_eq!(body, "", "{path}");
    }
    let (head, _) = ask(&client, "HEAD", "/1.0/nothing").await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

#[tokio::test]
async fn root_path_allows_all_methods() {
    let (_agent, client) = start();
    for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let reply = client.request(method, "/", "").await;
        assert_eq!(reply.status, 200, "{method}");
        assert_eq!(reply.body["metadata"], json!(["/1.0"]), "{method}");
    }
    assert!(
        ask(&client, "HEAD", "/")
            .await
            .0
            .starts_with("HTTP/1.1 200 ")
    );
}

#[tokio::test]
async fn unknown_path_is_404_with_any_method() {
    let (_agent, client) = start();
    for path in [
        "/1.0/",
        "//1.0",
        "/2.0",
        "/metrics/",
        "/1.0/state/",
        "/1.0/files",
        "/1.0/operations/",
        "/1.0/operations/x/wait",
    ] {
        for method in ["GET", "POST", "HEAD"] {
            let (head, _) = ask(&client, method, path).await;
            assert!(head.starts_with("HTTP/1.1 404 "), "{method} {path}: {head}");
        }
    }
}
