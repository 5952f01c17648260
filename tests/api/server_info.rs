//! `/1.0`: what the agent says of itself, and what the host may say.

use harness::{Pair, RawClient, TestAgent};
use serde_json::{Value, json};
use vsock_agent_protocol::version::{API_EXTENSIONS, Family};

use crate::wire::{ask, header};

fn start() -> (TestAgent, RawClient) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    (agent, client)
}

#[tokio::test]
async fn server_info_etag_depends_on_its_content() {
    let (_agent, client) = start();
    let (first, body) = ask(&client, "GET", "/1.0").await;
    let (second, _) = ask(&client, "GET", "/1.0").await;
    let tag = header(&first, "etag").unwrap();
    assert_eq!(header(&second, "etag"), Some(tag));
    let digits = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    let digits = digits.expect("an entity tag is quoted");
    assert_eq!(digits.len(), 64);
    assert!(digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["metadata"]["api_extensions"], json!(API_EXTENSIONS));
}

#[tokio::test]
async fn server_name_depends_on_the_family() {
    let (_agent, lxd) = start();
    let agent = TestAgent::configured(|config| config.family = Family::Incus);
    let incus = RawClient::new(&agent.socket());
    for (client, name) in [(lxd, "lxd-agent"), (incus, "incus-agent")] {
        let info = client.get("/1.0").await.body;
        assert_eq!(info["metadata"]["environment"]["server"], json!(name));
    }
}

#[tokio::test]
async fn put_server_sets_the_host_address() {
    let (_agent, client) = start();
    let certificate = Pair::lxd().certificate;
    for body in [
        json!({ "cid": 2, "port": 39041, "certificate": certificate, "devlxd": true }),
        json!({ "cid": 2, "port": 39041, "certificate": certificate, "dev_incus": true }),
        json!({ "cid": 2, "port": 39041, "certificate": "" }),
        json!({ "cid": 4294967295_u32, "port": 1024, "certificate": "", "new": [1] }),
    ] {
        let reply = client.request("PUT", "/1.0", &body.to_string()).await;
        assert_eq!(reply.status, 200, "{body}: {reply:?}");
        assert_eq!(reply.body["metadata"], json!({}));
    }
}

#[tokio::test]
async fn put_server_refuses_an_invalid_host() {
    let (_agent, client) = start();
    let pair = Pair::lxd();
    for body in [
        "".to_owned(),
        "{".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        json!({ "cid": 2, "port": 0, "certificate": "" }).to_string(),
        json!({ "cid": 2, "port": 4294967295_u32, "certificate": "" }).to_string(),
        json!({ "cid": 2, "port": 4294967296_u64, "certificate": "" }).to_string(),
        json!({ "cid": -1, "port": 1024, "certificate": "" }).to_string(),
        json!({ "cid": 2, "port": "1024", "certificate": "" }).to_string(),
        json!({ "cid": 2, "port": 1024, "certificate": "no PEM" }).to_string(),
        json!({ "cid": 2, "port": 1024, "certificate": pair.key }).to_string(),
        json!({ "cid": 2, "port": 1024, "certificate": "", "devlxd": "yes" }).to_string(),
    ] {
        let reply = client.request("PUT", "/1.0", &body).await;
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
        let reason = reply.body["error"].as_str().unwrap();
        assert!(
            !reason.is_empty() && !reason.contains("PRIVATE"),
            "{reason}"
        );
    }
}
