//! The `CONNECT` handshake of virtual machine monitors that map guest ports to a Unix socket.
//!
//! ```text
//! client ── "CONNECT 8443\n" ──►  monitor ──► guest port 8443
//! client ◄── "OK 1073741824\n" ── monitor          then bytes, both ways
//! ```
//!
//! The handshake is strict, because three monitors differ: the line is sent in one write, because a
//! fragment is dropped; nothing is sent before the answer, because bytes after the line are lost; the
//! answer is read byte by byte, because the guest's first bytes may follow it; and a handshake is never
//! aborted, because one monitor's device thread panics if the client is gone when the guest answers.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    sync::oneshot,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::error::ConnectError;

/// Longest answer to `CONNECT`, in bytes: `OK `, ten digits, newline, and some spaces. The monitors
/// have the same limit for the request.
const MAX_ANSWER_BYTES: usize = 32;

/// Time limit for a handshake after its caller is gone. A booting guest answers when its driver is
/// loaded, which takes a minute under emulation.
const LINGER_TIMEOUT: Duration = Duration::from_secs(90);

/// Connects to `port` in the guest, on a connection to the monitor. If this future is dropped, the
/// handshake goes on in `handshakes` until it is over.
pub(super) async fn connect(
    mut stream: UnixStream,
    port: u32,
    handshakes: &TaskTracker,
) -> Result<UnixStream, ConnectError> {
    let (give, take) = oneshot::channel();
    handshakes.spawn(async move {
        let outcome = timeout(LINGER_TIMEOUT, handshake(&mut stream, port))
            .await
            .unwrap_or(Err(ConnectError::TimedOut(LINGER_TIMEOUT)));
        // If the caller is gone, the connection is closed here, after the handshake.
        let _ = give.send(outcome.map(|()| stream));
    });
    take.await
        .unwrap_or_else(|_| Err(ConnectError::Io(io::ErrorKind::UnexpectedEof.into())))
}

/// Requests `port` and reads the answer, without reading any byte after it.
async fn handshake<S>(stream: &mut S, port: u32) -> Result<(), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let closed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => ConnectError::NobodyListens { port },
        _ => ConnectError::Io(error),
    };
    let line = format!("CONNECT {port}\n");
    stream.write_all(line.as_bytes()).await.map_err(closed)?;
    let mut answer = Vec::with_capacity(MAX_ANSWER_BYTES);
    while answer.len() < MAX_ANSWER_BYTES {
        match stream.read_u8().await.map_err(closed)? {
            b'\n' => break,
            byte => answer.push(byte),
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let host_port = answer.strip_prefix("OK ").map(str::trim);
    // The meaning of the number differs between monitors, but all send one.
    match host_port.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(()),
        _ => Err(ConnectError::NotHybrid(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the handshake against a monitor that reads the whole line and answers with `pieces`.
    async fn answered_with(pieces: &[&str]) -> (Result<(), ConnectError>, String) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let monitor = async {
            let mut line = [0; 13];
            theirs.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 8443\n");
            for piece in pieces {
                theirs.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(theirs);
        };
        let (outcome, ()) = tokio::join!(handshake(&mut ours, 8443), monitor);
        let mut rest = String::new();
        let _ = ours.read_to_string(&mut rest).await;
        (outcome, rest)
    }

    #[tokio::test]
    async fn an_answer_in_fragments_is_accepted() {
        let (outcome, rest) = answered_with(&["O", "K 10", "24", "\n"]).await;
        outcome.unwrap();
        assert_eq!(rest, "");
    }

    #[tokio::test]
    async fn bytes_of_the_guest_after_the_answer_are_kept() {
        let (outcome, rest) = answered_with(&["OK 1\nhello"]).await;
        outcome.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn a_closed_handshake_means_that_nothing_listens() {
        let (outcome, _) = answered_with(&[]).await;
        assert!(matches!(
            outcome,
            Err(ConnectError::NobodyListens { port: 8443 })
        ));
    }

    #[tokio::test]
    async fn another_answer_is_an_error() {
        for answer in [
            "HTTP/1.1 400 Bad\n",
            "OK\n",
            "OK x\n",
            "OK 4294967296\n",
            "\n",
        ] {
            let (outcome, _) = answered_with(&[answer]).await;
            assert!(
                matches!(outcome, Err(ConnectError::NotHybrid(_))),
                "{answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_an_error() {
        let endless = "OK 1".to_owned() + &"1".repeat(100);
        let (outcome, _) = answered_with(&[&endless]).await;
        assert!(matches!(outcome, Err(ConnectError::NotHybrid(text)) if text.len() == 32));
    }

    #[tokio::test]
    async fn a_handshake_is_finished_after_its_caller_is_gone() {
        let directory = std::env::temp_dir().join(format!("hybrid-{}", std::process::id()));
        let _ = std::fs::remove_file(&directory);
        let listener = tokio::net::UnixListener::bind(&directory).unwrap();
        let handshakes = TaskTracker::new();
        {
            let stream = UnixStream::connect(&directory).await.unwrap();
            let mut connecting = Box::pin(connect(stream, 8443, &handshakes));
            // Polled until the line is sent, then dropped before the answer.
            let monitor = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = [0; 13];
                stream.read_exact(&mut line).await.unwrap();
                stream
            };
            let stream = tokio::select! {
                stream = monitor => stream,
                _ = &mut connecting => panic!("there is no answer yet"),
            };
            drop(connecting);
            assert_eq!(handshakes.len(), 1);
            let mut stream = stream;
            stream.write_all(b"OK 5\n").await.unwrap();
        }
        handshakes.close();
        handshakes.wait().await;
        std::fs::remove_file(&directory).unwrap();
    }
}
