//! From HTTP to another protocol, on one connection: what is asked, and the answer up to the first
//! byte that is not HTTP.

use std::io::{Read, Write};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 8192;

/// The request.
#[must_use]
pub fn request(path: &str, protocol: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

/// Reads that the agent agrees.
pub async fn answered(stream: &mut (impl AsyncRead + Unpin)) {
    let mut head = Vec::new();
    while !is_head(&head) {
        head.push(stream.read_u8().await.unwrap());
    }
    check(&head);
}

/// Asks, and reads that the agent agrees, without a runtime.
pub fn ask(stream: &mut (impl Read + Write), request: &str) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !is_head(&head) {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    check(&head);
}

fn is_head(head: &[u8]) -> bool {
    head.ends_with(b"\r\n\r\n") || head.len() == MAX_HEAD_BYTES
}

fn check(head: &[u8]) {
    let text = head.escape_ascii();
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{text}");
    assert!(head.ends_with(b"\r\n\r\n"), "{text}");
}
