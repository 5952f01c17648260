//! What a program in the guest gets for which request.

use std::time::Duration;

use harness::{HostData, RawClient};
use serde_json::{Value, json};

use super::start;
use crate::wire::{answer, ask, header};

/// The status, the type and the body of the answer.
async fn get(guest: &RawClient, path: &str) -> (u16, String, String) {
    let (head, body) = ask(guest, "GET", path).await;
    let length = header(&head, "content-length").expect("a length");
    assert_eq!(length, body.len().to_string(), "{path}");
    let kind = header(&head, "content-type").unwrap().to_owned();
    (status(&head), kind, body)
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

async fn value(guest: &RawClient, path: &str) -> String {
    let (status, kind, body) = get(guest, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    assert_eq!(kind, "application/octet-stream; charset=utf-8", "{path}");
    body
}

async fn object(guest: &RawClient, path: &str) -> Value {
    let (status, kind, body) = get(guest, path).await;
    assert_eq!((status, kind.as_str()), (200, "application/json"), "{path}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn guest_api_paths_answer_as_lxds() {
    let mut data = HostData::with(&[("user.a", "1"), ("cloud-init.user-data", "#!/bin/sh\n")]);
    data.unset.push("cloud-init.vendor-data".to_owned());
    let (_agent, _host, guest) = start(data.clone()).await;
    assert_eq!(object(&guest, "/").await, json!(["/1.0"]));
    let info = object(&guest, "/1.0").await;
    assert_eq!(info["instance_type"], json!("virtual-machine"));
    assert_eq!(info["supported_storage_drivers"], json!([]));
    assert_eq!(
        object(&guest, "/1.0/config").await,
        json!(["/1.0/config/cloud-init.user-data", "/1.0/config/user.a"])
    );
    assert_eq!(value(&guest, "/1.0/config/user.a").await, "1");
    assert_eq!(value(&guest, "/1.0/meta-data").await, data.meta_data);
    assert_eq!(object(&guest, "/1.0/devices").await, data.devices);
}

#[tokio::test]
async fn guest_api_errors_are_plain_text() {
    let mut data = HostData::with(&[("user.empty", ""), ("user.a", "1")]);
    for hidden in ["volatile.uuid", "cloud-init.ssh-keys.ann"] {
        data.config.insert(hidden.to_owned(), "secret".to_owned());
    }
    let (_agent, _host, guest) = start(data).await;
    for (path, expected) in [
        ("/1.0/config/volatile.uuid", 403),
        ("/1.0/config/limits.cpu", 403),
        ("/1.0/config/cloud-init.ssh-keys.ann", 403),
        ("/1.0/config/user.empty", 404),
        ("/1.0/config/user.unset", 404),
        ("/1.0/config/", 404),
        ("/1.0/config/%ff", 404),
        ("/1.0/config/user.a/", 404),
        ("/1.0/", 404),
        ("//1.0", 404),
        ("/1.0/unknown", 404),
    ] {
        let (status, kind, body) = get(&guest, path).await;
        assert_eq!(status, expected, "{path}: {body}");
        assert_eq!(kind, "text/plain; charset=utf-8", "{path}");
        assert!(body.ends_with('\n') && !body.contains("secret"), "{body}");
    }
    let listed = object(&guest, "/1.0/config").await;
    assert_eq!(listed, json!(["/1.0/config/user.a"]));
}

#[tokio::test]
async fn guest_api_socket_serves_no_agent_api() {
    let (_agent, _host, guest) = start(HostData::default()).await;
    for path in [
        "exec",
        "sftp",
        "operations",
        "state",
        "metrics",
        "port-forward",
    ] {
        for method in ["GET", "POST"] {
            let reply = guest.request(method, &format!("/1.0/{path}"), "{}").await;
            assert_eq!(reply.status, 404, "{method} {path}: {reply:?}");
        }
    }
    for (method, path) in [
        ("PUT", "/1.0"),
        ("POST", "/1.0/events"),
        ("DELETE", "/1.0/config"),
    ] {
        let reply = guest.request(method, path, "{}").await;
        assert_eq!(reply.status, 405, "{method} {path}: {reply:?}");
    }
    assert_eq!(guest.get("/metrics").await.status, 404);
}

#[tokio::test]
async fn guest_api_returns_values_byte_for_byte() {
    let odd = "user.ä b/c?d#e%41";
    let (_agent, _host, guest) = start(HostData::with(&[
        ("user.short", "€5"),
        ("user.snow", "☃ ok"),
        ("user.lines", "a\r\nb\tc\u{0}\n"),
        (odd, "odd"),
    ]))
    .await;
    assert_eq!(value(&guest, "/1.0/config/user.short").await, "€5");
    assert_eq!(value(&guest, "/1.0/config/user.snow").await, "☃ ok");
    assert_eq!(
        value(&guest, "/1.0/config/user.lines").await,
        "a\r\nb\tc\u{0}\n"
    );
    let path = "/1.0/config/user.%C3%A4%20b%2Fc%3Fd%23e%2541";
    assert_eq!(value(&guest, path).await, "odd");
    let listed = object(&guest, "/1.0/config").await;
    assert_eq!(listed[3], json!(format!("/1.0/config/{odd}")));
}

#[tokio::test]
async fn guest_api_accepts_absolute_urls() {
    let (_agent, _host, guest) = start(HostData::with(&[("user.a", "1")])).await;
    assert_eq!(value(&guest, "http://lxd/1.0/config/user.a").await, "1");
    let by_any_name = "GET /1.0/config/user.a HTTP/1.0\r\nHost: elsewhere\r\n\r\n";
    let (head, body) = answer(&guest, by_any_name).await;
    assert_eq!((status(&head), body.as_str()), (200, "1"));
}

#[tokio::test]
async fn a_thousand_keys_and_a_mebibyte_arrive() {
    let user_data = "#cloud-config\n# é\n".repeat(55_200);
    assert!(user_data.len() > 1024 * 1024);
    let mut data = HostData::with(&[("cloud-init.user-data", &user_data)]);
    for number in 0..1000 {
        data.config
            .insert(format!("user.key{number}"), format!("value {number}"));
    }
    let (_agent, host, guest) = start(data).await;
    let listed = object(&guest, "/1.0/config").await;
    assert_eq!(listed.as_array().unwrap().len(), 1001);
    assert_eq!(value(&guest, "/1.0/config/user.key999").await, "value 999");
    let got = value(&guest, "/1.0/config/cloud-init.user-data").await;
    assert!(got == user_data);
    // Reading asks the host for nothing.
    assert_eq!(host.log().len(), 1006);
}

#[tokio::test]
async fn guest_state_is_forwarded_to_the_host() {
    let (_agent, host, guest) = start(HostData::default()).await;
    let reply = guest.request("PATCH", "/1.0", r#"{"state":"Ready"}"#).await;
    assert_eq!((reply.status, reply.body), (200, json!("")));
    assert!(
        host.log()
            .contains(&r#"PATCH /1.0 {"state":"Ready"}"#.to_owned())
    );
    assert_eq!(guest.get("/1.0").await.body["state"], json!("Ready"));
    for nonsense in ["", "{}", r#"{"state":"Frozen"}"#] {
        let reply = guest.request("PATCH", "/1.0", nonsense).await;
        assert_eq!(reply.status, 400, "{nonsense}");
    }
    let large = " ".repeat(5000);
    assert_eq!(guest.request("PATCH", "/1.0", &large).await.status, 413);
    host.change(|data| data.failing.extend([("/1.0".to_owned(), 403)]));
    let reply = guest
        .request("PATCH", "/1.0", r#"{"state":"Started"}"#)
        .await;
    assert_eq!(
        (reply.status, reply.body),
        (403, json!("the host says no\n"))
    );
    assert_eq!(guest.get("/1.0").await.body["state"], json!("Ready"));
}

#[tokio::test]
async fn slow_host_does_not_block_guest_api_readers() {
    let (_agent, host, guest) = start(HostData::with(&[("user.a", "1")])).await;
    host.change(|data| data.delay = Duration::from_secs(3600));
    let report = async {
        let reply = guest.request("PATCH", "/1.0", r#"{"state":"Ready"}"#).await;
        assert_eq!(reply.status, 500, "{reply:?}");
    };
    let limit = Duration::from_secs(30);
    let reads = async {
        assert_eq!(value(&guest, "/1.0/config/user.a").await, "1");
    };
    tokio::time::timeout(limit, async { tokio::join!(report, reads) })
        .await
        .expect("an end");
}
