//! Its HTTP: answers that fit, with hostile text in them, and answers that are none.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use vsock_agent_protocol::version::API_EXTENSIONS;

use super::{Connection, LIFE, text::hostile_text};

/// The one operation there is.
const OPERATION: &str = "01234567-89ab-4cde-8f01-23456789abcd";

/// Longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A request: its first line and headers.
struct Request {
    method: String,
    path: String,
    key: Option<String>,
}

impl Connection {
    /// Answers requests until one of the two has had enough.
    pub(super) fn run(mut self) -> io::Result<()> {
        if self.random.percent(self.bad_percent / 5) {
            return self.greet();
        }
        for _ in 0..20 {
            let request = self.read_request()?;
            let key = request.key.clone().unwrap_or_default();
            let path = &request.path;
            let is_socket = path.contains("/websocket?") || path.starts_with("/1.0/events");
            if is_socket && request.method == "GET" {
                self.upgrade("websocket", &derive_accept_key(key.as_bytes()))?;
                return self.websocket();
            }
            if request.path.starts_with("/1.0/sftp") {
                self.upgrade("sftp", "")?;
                return self.sftp();
            }
            if self.random.percent(self.bad_percent) {
                return self.answer_badly();
            }
            self.answer(&request)?;
        }
        Ok(())
    }

    /// Says something before anything was asked.
    fn greet(&mut self) -> io::Result<()> {
        let noise: Vec<u8> = (0..300).map(|_| self.random.byte()).collect();
        let greeting: &[u8] = match self.random.below(5) {
            0 => return Ok(()),
            1 => return self.linger(),
            2 => b"SSH-2.0-OpenSSH_9.2p1\r\n",
            3 => b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            _ => &noise,
        };
        self.stream.write_all(greeting)?;
        self.linger()
    }

    fn read_request(&mut self) -> io::Result<Request> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, path) = (word(), word());
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        let length = header("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        self.stream.read_exact(&mut body)?;
        Ok(Request {
            method,
            path,
            key: header("sec-websocket-key"),
        })
    }

    fn upgrade(&mut self, protocol: &str, accept: &str) -> io::Result<()> {
        if self.random.percent(self.bad_percent) {
            return self.answer_badly();
        }
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes())
    }

    /// An answer that fits, as far as its form goes.
    fn answer(&mut self, request: &Request) -> io::Result<()> {
        let hostile_text = hostile_text(&mut self.random);
        let metadata = match (&request.method[..], &request.path[..]) {
            ("POST", "/1.0/exec") => self.operation(true),
            (_, path) if path.starts_with("/1.0/operations/") => self.operation(false),
            ("GET", "/1.0") => self.description(),
            _ => Value::Null,
        };
        let kind = match self
            .random
            .below(if self.bad_percent == 0 { 1 } else { 12 })
        {
            10 => "error",
            11 => "nonsense",
            _ => "sync",
        };
        let body = json!({
            "type": kind, "status": hostile_text, "status_code": 200, "operation": "",
            "error_code": 0, "error": hostile_text, "metadata": metadata,
        });
        self.send("200 OK", &body.to_string())
    }

    fn send(&mut self, status: &str, body: &str) -> io::Result<()> {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
        self.stream.write_all(head.as_bytes())?;
        self.stream.write_all(body.as_bytes())
    }

    fn description(&mut self) -> Value {
        let mut hostile_text = || hostile_text(&mut self.random);
        let mut extensions: Vec<String> = API_EXTENSIONS.iter().map(|&name| name.into()).collect();
        extensions.push(hostile_text());
        json!({
            "api_extensions": extensions, "api_status": hostile_text(), "api_version": hostile_text(),
            "auth": "trusted", "public": false, "auth_methods": [hostile_text()],
            "environment": {
                "kernel": hostile_text(), "kernel_architecture": hostile_text(), "kernel_version": hostile_text(),
                "server": hostile_text(), "server_pid": 1, "server_version": hostile_text(),
                "server_name": hostile_text(),
            },
        })
    }

    /// The state of the command, which ends after some questions.
    fn operation(&mut self, with_secrets: bool) -> Value {
        let code = *self.random.pick(&[103, 200, 200, 400, 401, 999]);
        let secrets = json!({"control": "aa", "0": "bb", "1": "cc", "2": "dd"});
        let metadata = match (with_secrets, self.random.below(5)) {
            (true, 0) => json!({"fds": {"0": "../../x", "control": "\r\nHost: x"}}),
            (true, _) => json!({"fds": secrets}),
            (_, 0) => Value::Null,
            (_, 1) => json!({"return": i64::from(i32::MIN), "bytes": {"1": u64::MAX}}),
            (_, 2) => {
                json!({"return": 3, "signal": -77, "start_error": hostile_text(&mut self.random)})
            }
            _ => json!({"return": 0}),
        };
        json!({
            "id": OPERATION, "class": "websocket", "description": hostile_text(&mut self.random),
            "created_at": "", "updated_at": "", "status": hostile_text(&mut self.random),
            "status_code": if with_secrets { 103 } else { code }, "resources": null,
            "metadata": metadata, "may_cancel": true, "err": hostile_text(&mut self.random),
            "location": "",
        })
    }

    /// What is no answer.
    fn answer_badly(&mut self) -> io::Result<()> {
        let hostile_text = hostile_text(&mut self.random);
        match self.random.below(14) {
            0 => Ok(()),
            1 => self.linger(),
            2 => self.endless("HTTP/1.1 200 OK\r\n", "x-header: value of a header\r\n"),
            3 => self.endless(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                CHUNK,
            ),
            4 => self.endless("HTTP/1.1 200 OK\r\n\r\n", "[0,0,0,0,0,0,0,0,0,0"),
            5 => self.endless(
                "HTTP/1.1 100 Continue\r\n\r\n",
                "HTTP/1.1 100 Continue\r\n\r\n",
            ),
            6 => {
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n{";
                self.stream.write_all(head.as_bytes())?;
                self.linger()
            }
            7 => {
                let statuses = [
                    "999 \x1b[31m",
                    "000 x",
                    "204 No Content",
                    "304 x",
                    "101 x",
                    "500 x",
                ];
                let status = *self.random.pick(&statuses);
                self.send(status, &hostile_text)
            }
            8 => self.send("500 Internal Server Error", &hostile_text),
            9 => self.send("200 OK", &"[".repeat(200_000)),
            10 => {
                let body = format!(
                    r#"{{"type":"sync","metadata":[0{}]}}"#,
                    ",0".repeat(4_000_000)
                );
                self.send("200 OK", &body)
            }
            11 => {
                let body =
                    format!(r#"{{"type":"sync","metadata":{{"api_version":[{hostile_text:?}]}}}}"#);
                self.send("200 OK", &body)
            }
            12 => self.slowly(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{ and so on"),
            _ => {
                let noise: Vec<u8> = (0..2000).map(|_| self.random.byte()).collect();
                self.stream.write_all(&noise)
            }
        }?;
        // Whatever is read from now on is not answered.
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Says the same again and again.
    pub(super) fn endless(&mut self, start: &str, again: &str) -> io::Result<()> {
        let end = Instant::now() + LIFE;
        self.stream.write_all(start.as_bytes())?;
        let many = again.repeat(1 + 60_000 / again.len());
        while Instant::now() < end {
            self.stream.write_all(many.as_bytes())?;
        }
        Ok(())
    }

    /// A byte at a time.
    fn slowly(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = Instant::now() + LIFE;
        self.stream.set_read_timeout(Some(PAUSE))?;
        for byte in bytes.iter().cycle() {
            if Instant::now() >= end {
                return Ok(());
            }
            self.stream.write_all(&[*byte])?;
            // It says nothing, and that is the pause.
            let _ = self.stream.read(&mut [0]);
        }
        Ok(())
    }
}

/// Time between two bytes of a slow answer.
const PAUSE: Duration = Duration::from_millis(20);

const CHUNK: &str = "10\r\n0123456789abcdef\r\n";
