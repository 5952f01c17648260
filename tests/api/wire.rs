//! An answer as it is on the wire, for tests that look at its head.

use harness::RawClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The head and the body of the answer to these bytes.
pub(crate) async fn answer(client: &RawClient, request: &str) -> (String, String) {
    let mut stream = client.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The head and the body of the answer to a request without a body.
pub(crate) async fn ask(client: &RawClient, method: &str, path: &str) -> (String, String) {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    answer(client, &head).await
}

/// The value of a header.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}
