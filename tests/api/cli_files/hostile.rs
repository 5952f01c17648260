//! Commands against a guest that lies.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::{Command, Output},
    thread,
};

use bytes::{Bytes, BytesMut};
use harness::TestFolder;
use vsock_agent_protocol::sftp::{Attributes, Name, Reply, Request, status};

use super::{cli, failed};

const FILE: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;

fn attributes(permissions: u32) -> Attributes {
    Attributes {
        permissions: Some(permissions),
        ..Attributes::default()
    }
}

fn said(code: u32) -> Reply {
    Reply::Status {
        code,
        message: Bytes::new(),
    }
}

fn names(names: &[(&str, u32)]) -> Reply {
    let entry = |(name, permissions): &(&str, u32)| Name {
        name: Bytes::copy_from_slice(name.as_bytes()),
        long_name: Bytes::new(),
        attributes: attributes(*permissions),
    };
    Reply::Names {
        names: names.iter().map(entry).collect(),
    }
}

/// Answers one client until it goes.
fn serve(mut stream: UnixStream, mut answer: impl FnMut(Request) -> Reply) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sftp\r\n\r\n";
    stream.write_all(agreed.as_bytes())?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame)?;
        let (id, request) = Request::decode(frame.into()).unwrap();
        let reply = match request {
            Request::Init { .. } => Reply::Version {
                version: 3,
                extensions: Vec::new(),
            },
            Request::Close { .. } => said(status::OK),
            request => answer(request),
        };
        let mut out = BytesMut::new();
        reply.encode(id, &mut out);
        stream.write_all(&out)?;
    }
}

/// Removes `/top` of a guest that answers so.
fn removed(answer: impl FnMut(Request) -> Reply + Send) -> Output {
    let folder = TestFolder::new("liar");
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let place = format!("unix:{}:/top", socket.display());
    thread::scope(|scope| {
        scope.spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            // It goes when it has seen enough.
            let _ = serve(stream, answer);
        });
        let mut rm = Command::new(cli());
        rm.args(["--plain", "rm", "-r", &place]).output().unwrap()
    })
}

/// A guest where nothing but `rmdir` fails, and `listing` says what is in a directory that was
/// opened as this path.
fn stubborn(listing: impl Fn(&[u8]) -> Reply + Send) -> impl FnMut(Request) -> Reply + Send {
    let mut open = None;
    move |request| match request {
        Request::Lstat { .. } => Reply::Attributes {
            attributes: attributes(DIRECTORY),
        },
        Request::Opendir { path } => {
            open = Some(path.clone());
            Reply::Handle {
                handle: Bytes::from_static(b"h"),
            }
        }
        Request::Readdir { .. } => open
            .take()
            .map_or_else(|| said(status::EOF), |path| listing(&path)),
        Request::Remove { .. } => said(status::OK),
        Request::Rmdir { .. } => said(status::FAILURE),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rm_r_gives_up_on_a_directory_that_is_never_empty() {
    let output = removed(stubborn(|_| names(&[("file", FILE)])));
    assert!(failed(&output).contains("cannot remove /top: "));
}

#[test]
fn rm_r_gives_up_on_an_endless_tree() {
    let below: Vec<String> = (0..32).map(|number| number.to_string()).collect();
    let below: Vec<_> = below.iter().map(|name| (&name[..], DIRECTORY)).collect();
    let output = removed(stubborn(|_| names(&below)));
    let stderr = failed(&output);
    assert!(stderr.contains("too many directories"), "{stderr:.999}");
}

#[test]
fn rm_r_names_every_directory_that_remains() {
    let output = removed(stubborn(|path| match path {
        b"/top" => names(&[("one", DIRECTORY), ("other", DIRECTORY)]),
        _ => said(status::EOF),
    }));
    let stderr = failed(&output);
    for name in ["one", "other"] {
        assert!(
            stderr.contains(&format!("cannot remove /top/{name}: ")),
            "{stderr}"
        );
    }
    assert!(stderr.contains("2 of its files"), "{stderr}");
}
