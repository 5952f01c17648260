//! OpenSSH's `sftp-server`, behind as much HTTP as it takes to get there.

use std::{
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::{Command, Stdio},
    thread,
};

use crate::TestFolder;

/// Debian's OpenSSH server for SFTP.
pub const OPENSSH_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// A listener whose every connection is a session of OpenSSH's server. It ends with the process.
#[derive(Debug)]
pub struct StockServer {
    folder: TestFolder,
}

impl StockServer {
    /// Listens on a socket in a folder of its own.
    #[must_use]
    pub fn start() -> Self {
        let folder = TestFolder::new("openssh");
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || serve(stream));
            }
        });
        Self { folder }
    }

    /// Where it listens, as the command line writes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix:{}/socket", self.folder.path().display())
    }
}

fn serve(mut stream: UnixStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    assert!(
        head.starts_with(b"GET /1.0/sftp"),
        "{}",
        head.escape_ascii()
    );
    let answer =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n";
    stream.write_all(answer).unwrap();
    let output = OwnedFd::from(stream.try_clone().unwrap());
    let server = Command::new(OPENSSH_SERVER)
        .stdin(OwnedFd::from(stream))
        .stdout(output)
        .stderr(Stdio::null())
        .status();
    // Its status says how the client left, not whether it could serve.
    server.unwrap();
}
