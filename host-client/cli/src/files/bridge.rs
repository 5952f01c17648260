//! Raw SFTP between stdin, stdout and the guest, for clients such as OpenSSH's.
//!
//! End of file on stdin cannot be forwarded, because no connection to a guest can close one direction
//! only. The bridge ends when the replies to all requests have arrived. It forwards both streams
//! unchanged and counts their frames.

use anyhow::{Context, bail};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vsock_agent_client::AgentStream;

use crate::stdio::{self, Sink, Writer};

/// Bytes read at once from the guest.
const BUFFER_BYTES: usize = 64 * 1024;

/// Forwards in both directions until one of them ends.
pub(crate) async fn run(stream: AgentStream) -> anyhow::Result<u8> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let mut stdin = stdio::stdin()?;
    let stdout = Writer::start(Sink::Stdout)?;
    let (sender, mut requests) = tokio::sync::watch::channel(Requests::default());
    let up = async {
        let mut frames = Frames::default();
        while let Some(piece) = stdin.recv().await {
            let piece = piece.context("cannot read stdin")?;
            frames.count(&piece);
            sender.send_modify(|requests| requests.count = frames.complete);
            let sent = async {
                to_guest.write_all(&piece).await?;
                to_guest.flush().await
            };
            sent.await.context("cannot send to the agent")?;
        }
        sender.send_modify(|requests| requests.is_last = true);
        // With TLS this sends `close_notify`; without, the agent notices when the connection closes.
        let _ = to_guest.shutdown().await;
        std::future::pending::<anyhow::Result<()>>().await
    };
    let down = async {
        let mut frames = Frames::default();
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER_BYTES);
            let read = tokio::select! {
                biased;
                _ = requests.wait_for(|now| now.are_answered_by(frames.complete)) => {
                    return Ok(());
                }
                read = from_guest.read_buf(&mut buffer) => read,
            };
            match read {
                Ok(count) if count > 0 => {}
                // An error after the last reply is ignored.
                _ if requests.borrow().are_answered_by(frames.complete) => return Ok(()),
                Ok(_) => bail!("the agent closed the connection"),
                Err(error) => return Err(error).context("the connection to the agent was lost"),
            }
            let piece = buffer.split().freeze();
            frames.count(&piece);
            if !stdout.write(piece).await {
                return Ok(());
            }
        }
    };
    let outcome = tokio::select! {
        outcome = down => outcome,
        Err(error) = up => Err(error),
    };
    stdout.finish().await?;
    outcome.map(|()| 0)
}

/// The requests that were sent.
#[derive(Debug, Clone, Copy, Default)]
struct Requests {
    /// Complete requests.
    count: u64,
    /// Whether no more requests follow.
    is_last: bool,
}

impl Requests {
    const fn are_answered_by(self, replies: u64) -> bool {
        self.is_last && self.count <= replies
    }
}

/// Counts the frames in a stream of bytes.
#[derive(Debug, Default)]
struct Frames {
    complete: u64,
    head: [u8; 4],
    head_bytes: usize,
    body_left: u32,
}

impl Frames {
    fn count(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.head_bytes < self.head.len() {
                self.head[self.head_bytes] = bytes[0];
                self.head_bytes += 1;
                bytes = &bytes[1..];
                if self.head_bytes == self.head.len() {
                    self.body_left = u32::from_be_bytes(self.head);
                }
            } else {
                let left = usize::try_from(self.body_left).unwrap_or(usize::MAX);
                let count = left.min(bytes.len());
                bytes = &bytes[count..];
                self.body_left -= u32::try_from(count).unwrap_or(self.body_left);
            }
            if self.head_bytes == self.head.len() && self.body_left == 0 {
                self.complete += 1;
                self.head_bytes = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sftp_frames_are_counted_in_pieces_of_any_size() {
        let stream = [0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0];
        for size in 1..=stream.len() {
            let mut frames = Frames::default();
            stream.chunks(size).for_each(|piece| frames.count(piece));
            assert_eq!(frames.complete, 3, "in pieces of {size}");
        }
    }
}
