//! From the client's connection to a TCP port.

use std::time::Duration;

use harness::{RawClient, TestAgent, eventually, raw::Connection};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::wire::ask;

const PATIENCE: Duration = Duration::from_secs(10);

async fn start() -> (TestAgent, RawClient, TcpListener, u16) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (agent, client, listener, port)
}

fn request(upgrade: &str, body: &str) -> String {
    format!(
        "POST /1.0/port-forward HTTP/1.1\r\nHost: custom.socket\r\nUpgrade: {upgrade}\r\n\
         Connection: Upgrade\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_head(stream: &mut Connection) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

/// Both ends of a forwarded connection. `more` goes out with the request.
pub(crate) async fn forward(
    client: &RawClient,
    listener: &TcpListener,
    body: Value,
    more: &str,
) -> (Connection, TcpStream) {
    let mut near = client.connect().await;
    let request = request("tcp", &body.to_string()) + more;
    near.write_all(request.as_bytes()).await.unwrap();
    let (far, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let head = read_head(&mut near).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("\r\nupgrade: tcp\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: upgrade\r\n"), "{head}");
    (near, far)
}

#[tokio::test]
async fn port_forward_half_closes_each_direction() {
    let (_agent, client, listener, port) = start().await;
    let body = json!({ "address": "127.0.0.1", "port": port });
    let (mut near, mut far) = forward(&client, &listener, body, "").await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    far.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    let answer = vec![7; 1024 * 1024];
    far.write_all(&answer).await.unwrap();
    drop(far);
    let mut read = Vec::new();
    near.read_to_end(&mut read).await.unwrap();
    assert!(read == answer, "{} bytes came", read.len());
}

#[tokio::test]
async fn port_forward_address_defaults_to_the_loopback() {
    let (_agent, client, listener, port) = start().await;
    for body in [
        json!({ "port": port }),
        json!({ "port": port, "address": "" }),
        json!({ "port": port, "address": "localhost" }),
    ] {
        let (mut near, mut far) = forward(&client, &listener, body, "early").await;
        let mut early = [0; 5];
        far.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        drop(far);
        assert_eq!(near.read(&mut early).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn port_forward_refuses_invalid_requests() {
    let (_agent, client, listener, port) = start().await;
    drop(listener);
    let good = json!({ "port": port }).to_string();
    for (upgrade, body, status) in [
        ("websocket", good.as_str(), 400),
        ("tcp", "", 400),
        ("tcp", "{", 400),
        ("tcp", "{}", 400),
        ("tcp", r#"{"port":0}"#, 400),
        ("tcp", r#"{"port":65536}"#, 400),
        ("tcp", r#"{"port":"80"}"#, 400),
        (
            "tcp",
            r#"{"port":80,"address":"no.such.name.invalid"}"#,
            400,
        ),
        ("tcp", &good, 500),
    ] {
        let mut stream = client.connect().await;
        let request = request(upgrade, body);
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status} ")),
            "{body}: {reply}"
        );
        let (_, reply) = reply.split_once("\r\n\r\n").unwrap();
        let reply: Value = serde_json::from_str(reply).unwrap();
        assert_eq!(reply["error_code"], json!(status), "{body}");
        let reason = reply["error"].as_str().unwrap();
        assert!(!reason.is_empty());
        if status == 500 {
            assert!(reason.contains("refused"), "{reason}");
        }
    }
}

#[tokio::test]
async fn port_forward_connections_are_counted_in_metrics() {
    let (_agent, client, listener, port) = start().await;
    let counts = async |number: &str| {
        let line = format!("\nvsock_agent_port_forwards {number}\n");
        ask(&client, "GET", "/metrics").await.1.contains(&line)
    };
    let (near, far) = forward(&client, &listener, json!({ "port": port }), "").await;
    assert!(counts("1").await);
    drop((near, far));
    assert!(eventually(PATIENCE, async || counts("0").await).await);
}

#[tokio::test]
async fn port_forward_to_a_silent_port_ends_with_its_client() {
    let (_agent, client, listener, port) = start().await;
    let (mut near, mut far) = forward(&client, &listener, json!({ "port": port }), "").await;
    near.write_all(b"last words").await.unwrap();
    drop(near);
    let mut words = String::new();
    far.read_to_string(&mut words).await.unwrap();
    assert_eq!(words, "last words");
    let none = "\nvsock_agent_port_forwards 0\n";
    let is_closed = async || ask(&client, "GET", "/metrics").await.1.contains(none);
    assert!(eventually(PATIENCE, is_closed).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_ends_when_the_agent_stops() {
    let (mut agent, client, listener, port) = start().await;
    let (mut near, mut far) = forward(&client, &listener, json!({ "port": port }), "").await;
    tokio::task::spawn_blocking(move || agent.stop())
        .await
        .unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, near.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    timeout(PATIENCE, far.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest, b"");
}
