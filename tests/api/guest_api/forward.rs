//! Routes that only the host can answer.

use std::{collections::BTreeMap, time::Duration};

use harness::{
    HostData, RawClient, eventually,
    host::{http_text, refuse, result},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    time::timeout,
};

use super::{put, start};
use crate::wire::{answer, ask, header};

/// Far longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

const VOLUME: &str = "/1.0/storage-pools/p/volumes/custom/v";

/// A host that has these answers.
fn with_answers(answers: &[(&str, Vec<u8>)]) -> HostData {
    let answers = answers.iter();
    HostData {
        answers: answers
            .map(|(request, answer)| ((*request).to_owned(), answer.clone()))
            .collect::<BTreeMap<_, _>>(),
        ..HostData::default()
    }
}

/// The status and the body of the answer, and its head.
async fn request(
    guest: &RawClient,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String, String) {
    let length = body.len();
    let bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\
         {headers}\r\n{body}"
    );
    let (head, body) = answer(guest, &bytes).await;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body, head)
}

/// What a guest asks, and what LXD answers when the feature is off.
fn off() -> Vec<(&'static str, String, u16, String)> {
    let forbidden = |method, path: &str| (method, path.to_owned(), 403, "Forbidden\n".to_owned());
    vec![
        (
            "GET",
            "/1.0/ubuntu-pro".to_owned(),
            200,
            "{\"guest_attach\":\"off\"}\n".to_owned(),
        ),
        (
            "POST",
            "/1.0/ubuntu-pro/token".to_owned(),
            403,
            "Failed to get an Ubuntu Pro guest token: Guest attachment not allowed\n".to_owned(),
        ),
        forbidden("GET", "/1.0/instances/c1"),
        forbidden("PATCH", "/1.0/instances/c1"),
        forbidden("DELETE", "/1.0/operations/1"),
        forbidden("GET", "/1.0/operations/1/wait?timeout=-1"),
        forbidden("GET", "/1.0/storage-pools/p"),
        forbidden("POST", "/1.0/storage-pools/p/volumes"),
        forbidden("GET", "/1.0/storage-pools/p/volumes/custom?recursion=1"),
        forbidden("DELETE", VOLUME),
        forbidden("POST", &format!("{VOLUME}/snapshots")),
        forbidden("GET", &format!("{VOLUME}/snapshots/s")),
    ]
}

async fn assert_off(guest: &RawClient) {
    for (method, path, status, text) in off() {
        let answer = request(guest, method, &path, "", "{}").await;
        assert_eq!((answer.0, answer.1), (status, text), "{method} {path}");
    }
    // LXD's agent gives the host's answer as it is.
    let (status, body, head) = request(guest, "GET", "/1.0/images/ab/export", "", "").await;
    let envelope: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(header(&head, "content-type"), Some("application/json"));
    assert_eq!(
        (status, &envelope["error"], &envelope["error_code"]),
        (403, &json!("Forbidden"), &json!(403))
    );
}

#[tokio::test]
async fn host_without_optional_routes_disables_them() {
    let (_agent, host, guest) = start(HostData::default()).await;
    assert_off(&guest).await;
    // Some of LXD's answer every unknown path as `/`.
    host.change(|data| {
        for (method, path, ..) in off() {
            let request = format!("{method} {path}");
            data.answers.insert(request, result(&json!(["/1.0"])));
        }
    });
    assert_off(&guest).await;
}

#[tokio::test]
async fn unreachable_host_is_an_error_not_a_disabled_route() {
    let (_agent, host, guest) = start(HostData::default()).await;
    drop(host);
    let (status, body, _) = request(&guest, "GET", "/1.0/ubuntu-pro", "", "").await;
    assert_eq!(
        (status, body.as_str()),
        (200, "{\"guest_attach\":\"off\"}\n")
    );
    // Whoever would change something hears that nobody was asked.
    for (method, path) in [("POST", "/1.0/ubuntu-pro/token"), ("DELETE", VOLUME)] {
        let (status, body, _) = request(&guest, method, path, "", "").await;
        assert_eq!(
            (status, body.as_str()),
            (500, "cannot connect to the host\n"),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn host_that_stops_during_a_request_is_unreachable() {
    let (agent, host, guest) = start(HostData::default()).await;
    drop(host);
    let socket = agent.folder().join("host.sock");
    std::fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let end = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1024];
            let length = stream.read(&mut head).await.unwrap_or(0);
            // The agent has questions of its own.
            if String::from_utf8_lossy(&head[..length]).contains("/1.0/ubuntu-pro ") {
                drop(listener);
                break;
            }
        }
    };
    let asked = request(&guest, "GET", "/1.0/ubuntu-pro", "", "");
    let ((status, body, _), ()) = tokio::join!(asked, end);
    assert_eq!(
        (status, body.as_str()),
        (200, "{\"guest_attach\":\"off\"}\n")
    );
}

#[tokio::test]
async fn forwarded_request_is_unchanged_and_reply_is_unwrapped() {
    let volume = json!({ "name": "v", "config": {} });
    let operation = json!({ "id": "1", "status": "Running", "status_code": 103 });
    let mut tagged = String::from_utf8(result(&volume)).unwrap();
    tagged = tagged.replace("\r\n\r\n", "\r\nETag: tag1\r\nX-Other: 1\r\n\r\n");
    let list = "/1.0/storage-pools/p/volumes/custom?recursion=1&target=m%201";
    let (_agent, host, guest) = start(with_answers(&[
        (
            "GET /1.0/ubuntu-pro",
            result(&json!({ "guest_attach": "on" })),
        ),
        (
            "POST /1.0/ubuntu-pro/token",
            result(&json!({ "guest_token": "t" })),
        ),
        (&format!("GET {VOLUME}"), tagged.into_bytes()),
        (&format!("GET {list}"), result(&json!([volume]))),
        (&format!("PATCH {VOLUME}"), result(&operation)),
        (
            &format!("DELETE {VOLUME}"),
            refuse(412, "Precondition failed"),
        ),
        ("GET /1.0/instances/a%2Bb", refuse(404, "no such instance")),
        ("PATCH /1.0/instances/c1", result(&json!(""))),
        ("GET /1.0/operations/1/wait?timeout=5", result(&operation)),
    ]))
    .await;
    let token = "Authorization: Bearer abc.def\r\nIf-Match: tag1\r\nX-Secret: 1\r\n";
    for (method, path, status, expected) in [
        (
            "GET",
            "/1.0/ubuntu-pro",
            200,
            json!({ "guest_attach": "on" }),
        ),
        (
            "POST",
            "/1.0/ubuntu-pro/token",
            200,
            json!({ "guest_token": "t" }),
        ),
        ("GET", VOLUME, 200, volume.clone()),
        ("GET", list, 200, json!([volume])),
        ("PATCH", VOLUME, 200, operation.clone()),
        ("GET", "/1.0/operations/1/wait?timeout=5", 200, operation),
    ] {
        let (got, body, head) = request(&guest, method, path, token, "{\"x\":1}").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((got, body), (status, expected), "{method} {path}");
        assert_eq!(header(&head, "content-type"), Some("application/json"));
        let etag = (method, path) == ("GET", VOLUME);
        assert_eq!(header(&head, "etag"), etag.then_some("tag1"), "{path}");
        assert_eq!(header(&head, "x-other"), None);
    }
    let asked = host.heads().pop().unwrap();
    assert_eq!(header(&asked, "authorization"), Some("Bearer abc.def"));
    assert_eq!(header(&asked, "if-match"), Some("tag1"));
    assert_eq!(header(&asked, "x-secret"), None, "{asked}");
    assert!(host.log().contains(&format!("PATCH {VOLUME} {{\"x\":1}}")));
    for (method, path, status, text) in [
        ("DELETE", VOLUME, 412, "Precondition failed\n"),
        ("GET", "/1.0/instances/%61+b", 404, "no such instance\n"),
        ("PATCH", "/1.0/instances/c1", 200, ""),
    ] {
        let (got, body, _) = request(&guest, method, path, "", "").await;
        assert_eq!((got, body.as_str()), (status, text), "{method} {path}");
    }
}

#[tokio::test]
async fn only_listed_host_routes_are_forwarded() {
    let (_agent, host, guest) = start(HostData::default()).await;
    let before = host.log().len();
    for (method, path, status) in [
        ("GET", "/1.0/instances/..", 404),
        ("GET", "/1.0/instances/%2e%2e", 404),
        ("GET", "/1.0/instances/..%2f..%2f1.0%2fcertificates", 404),
        ("GET", "/1.0/storage-pools/../certificates", 404),
        ("GET", "/1.0/certificates", 404),
        ("POST", "/1.0/instances", 404),
        ("POST", "/1.0/instances/c1/exec", 404),
        ("DELETE", "/1.0/instances/c1", 405),
        ("PUT", "/1.0/ubuntu-pro", 405),
        ("GET", "/1.0/ubuntu-pro/token", 405),
        ("PUT", VOLUME, 405),
    ] {
        let (got, ..) = request(&guest, method, path, "", "{}").await;
        assert_eq!(got, status, "{method} {path}");
    }
    let large = " ".repeat(64 * 1024 + 1);
    assert_eq!(request(&guest, "PATCH", VOLUME, "", &large).await.0, 413);
    assert_eq!(host.log().len(), before);
}

#[tokio::test]
async fn host_decides_whether_a_token_is_trusted() {
    let trusted = json!({
        "api_version": "1.0", "auth": "trusted", "instance_type": "virtual-machine",
        "location": "none", "state": "Started", "supported_storage_drivers": [],
    });
    let (_agent, host, guest) = start(HostData::default()).await;
    let token = "Authorization: bearer abc\r\n";
    let auth = async |headers| {
        let (status, body, _) = request(&guest, "GET", "/1.0", headers, "").await;
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        (status, body["auth"].clone())
    };
    host.change(|data| drop(data.answers.insert("GET /1.0".to_owned(), result(&trusted))));
    assert_eq!(auth(token).await, (200, json!("trusted")));
    // Who has none gets what was fetched, without a question.
    let asked = host.log().len();
    assert_eq!(auth("").await, (200, json!("untrusted")));
    assert_eq!(auth("Authorization: Basic eA==\r\n").await.1, "untrusted");
    assert_eq!(host.log().len(), asked);
    let wrong = refuse(403, "Failed to verify bearer token");
    host.change(|data| drop(data.answers.insert("GET /1.0".to_owned(), wrong)));
    assert_eq!(auth(token).await, (403, Value::Null));
    drop(host);
    assert_eq!(auth(token).await, (200, json!("untrusted")));
}

#[tokio::test]
async fn image_export_is_streamed() {
    let image = "0123456789abcdef".repeat(256 * 1024);
    let whole = http_text(200, "application/octet-stream", &image);
    let half = whole[..whole.len() / 2].to_vec();
    let named = |answer: &[u8]| {
        let name = b"HTTP/1.1 200 X\r\nContent-Disposition: inline;filename=a.tar\r\n";
        [name.as_slice(), &answer["HTTP/1.1 200 X\r\n".len()..]].concat()
    };
    let mut data = with_answers(&[
        ("GET /1.0/images/ab/export", named(&whole)),
        ("GET /1.0/images/half/export", named(&half)),
        ("GET /1.0/images/no/export", refuse(404, "Not Found")),
    ]);
    data.closes = true;
    let (_agent, _host, guest) = start(data).await;
    let (status, body, head) = request(&guest, "GET", "/1.0/images/ab/export", "", "").await;
    assert_eq!(status, 200);
    assert!(body == image);
    assert_eq!(
        header(&head, "content-disposition"),
        Some("inline;filename=a.tar")
    );
    let length = image.len().to_string();
    assert_eq!(header(&head, "content-length"), Some(length.as_str()));
    let (head, body) = ask(&guest, "HEAD", "/1.0/images/ab/export").await;
    assert_eq!(header(&head, "content-length"), Some(length.as_str()));
    assert_eq!(body, "");
    // What is cut off does not look whole.
    let (status, body, head) = request(&guest, "GET", "/1.0/images/half/export", "", "").await;
    assert_eq!(status, 200);
    assert!(body.len() < image.len());
    assert_eq!(header(&head, "content-length"), Some(length.as_str()));
    let (status, body, _) = request(&guest, "GET", "/1.0/images/no/export", "", "").await;
    let envelope: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &envelope["error"]), (404, &json!("Not Found")));
}

#[tokio::test]
async fn oversized_host_reply_is_refused() {
    let names: Vec<_> = (0..200_000).map(|number| format!("v{number}")).collect();
    let path = "/1.0/storage-pools/p/volumes";
    let (_agent, _host, guest) = start(with_answers(&[(
        &format!("GET {path}"),
        result(&json!(names)),
    )]))
    .await;
    let (status, body, _) = request(&guest, "GET", path, "", "").await;
    assert_eq!(
        (status, body.as_str()),
        (500, "cannot read the host's reply\n")
    );
}

#[tokio::test]
async fn forwarded_requests_are_limited() {
    let (_agent, host, guest) = start(HostData::default()).await;
    host.change(|data| data.delay = Duration::from_secs(3600));
    let path = "/1.0/operations/1/wait";
    let before = host.log().len();
    let mut waiting = Vec::new();
    for _ in 0..32 {
        let mut stream = guest.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    let are_there = async || host.log().len() == before + 32;
    assert!(eventually(PATIENCE, are_there).await);
    let (status, ..) = request(&guest, "GET", path, "", "").await;
    assert_eq!(status, 503);
    drop(waiting);
    let has_room = async || {
        let mut stream = guest.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut byte = [0];
        let answered = stream.read(&mut byte);
        timeout(Duration::from_millis(200), answered).await.is_err()
    };
    assert!(eventually(PATIENCE, has_room).await);
}

#[tokio::test]
async fn waiting_forwarded_requests_end_when_the_host_disables_them() {
    let (agent, host, guest) = start(HostData::default()).await;
    host.change(|data| data.delay = Duration::from_secs(3600));
    let before = host.log().len();
    let wait = request(&guest, "GET", "/1.0/operations/1/wait", "", "");
    let end = async {
        let is_there = async || host.log().len() > before;
        assert!(eventually(PATIENCE, is_there).await);
        put(&agent, "", false).await;
    };
    let both = async { tokio::join!(wait, end).0 };
    let (status, body, _) = timeout(PATIENCE, both).await.expect("an end");
    assert_eq!(
        (status, body.as_str()),
        (503, "requests are no longer forwarded to the host\n")
    );
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let volume = result(&json!({ "name": "v" }));
    let mut data = with_answers(&[(&format!("GET {VOLUME}"), volume)]);
    data.config.insert("user.a".to_owned(), "1".to_owned());
    let (_agent, _host, guest) = start(data).await;
    for path in [
        "/",
        "/1.0",
        "/1.0/config",
        "/1.0/config/user.a",
        "/1.0/meta-data",
        "/1.0/devices",
        "/1.0/ubuntu-pro",
        VOLUME,
    ] {
        let (_, whole, got) = request(&guest, "GET", path, "", "").await;
        let (head, body) = ask(&guest, "HEAD", path).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        assert_eq!(body, "", "{path}");
        let length = whole.len().to_string();
        assert_eq!(header(&head, "content-length"), Some(length.as_str()));
        assert_eq!(header(&head, "content-type"), header(&got, "content-type"));
    }
    let (head, body) = ask(&guest, "HEAD", "/1.0/events").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(body, "");
    let (head, _) = ask(&guest, "HEAD", "/1.0/storage-pools/p").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let (head, _) = ask(&guest, "HEAD", "/1.0/ubuntu-pro/token").await;
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    assert_eq!(header(&head, "allow"), Some("POST"));
}
