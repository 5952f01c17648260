//! Raw SFTP between stdin, stdout and the guest, for clients such as OpenSSH's.
//!
//! The end of stdin cannot be passed on: no way into a guest closes one direction only. But it
//! means that no more requests come, so the conversation is over when the replies to all that came
//! are back. Both streams are cut into frames to count them, and passed on byte for byte.

use anyhow::{Context, bail};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vsock_agent_client::AgentStream;

use crate::stdio::{self, Sink, Writer};

/// Bytes read at once from the guest.
const BUFFER_BYTES: usize = 64 * 1024;

/// Joins stdio with the guest until one of them ends.
pub(crate) async fn run(stream: AgentStream) -> anyhow::Result<u8> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let mut stdin = stdio::stdin()?;
    let stdout = Writer::start(Sink::Stdout)?;
    let (count, counted) = tokio::sync::watch::channel(Progress::default());
    let up = async {
        let mut frames = Frames::default();
        while let Some(piece) = stdin.recv().await {
            let piece = piece.context("cannot read stdin")?;
            frames.take(&piece);
            count.send_modify(|progress| progress.asked = frames.complete);
            to_guest
                .write_all(&piece)
                .await
                .context("the agent takes no more")?;
            to_guest.flush().await.context("the agent takes no more")?;
        }
        count.send_modify(|progress| progress.asked_all = true);
        // With TLS this sends `close_notify`; without, the agent notices when the connection closes.
        let _ = to_guest.shutdown().await;
        std::future::pending::<anyhow::Result<()>>().await
    };
    let down = async {
        let mut frames = Frames::default();
        let mut buffer = BytesMut::new();
        let mut counted = counted;
        loop {
            buffer.reserve(BUFFER_BYTES);
            let read = tokio::select! {
                biased;
                _ = counted.wait_for(|now| now.is_answered_by(frames.complete)) => {
                    return Ok(());
                }
                read = from_guest.read_buf(&mut buffer) => read,
            };
            match read {
                Ok(count) if count > 0 => {}
                // Errors after the last byte do not matter.
                _ if counted.borrow().is_answered_by(frames.complete) => return Ok(()),
                Ok(_) => bail!("the agent closed the connection"),
                Err(error) => return Err(error).context("the connection to the agent was lost"),
            }
            let piece = buffer.split().freeze();
            frames.take(&piece);
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

/// What went up.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Requests, whole ones.
    asked: u64,
    /// Whether that were all.
    asked_all: bool,
}

impl Progress {
    /// Whether nothing more is to come after this many replies.
    const fn is_answered_by(self, replies: u64) -> bool {
        self.asked_all && self.asked <= replies
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
    fn take(&mut self, mut bytes: &[u8]) {
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
    fn frames_are_counted_however_they_are_cut() {
        let stream = [0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0, 0];
        for size in 1..=stream.len() {
            let mut frames = Frames::default();
            stream.chunks(size).for_each(|piece| frames.take(piece));
            assert_eq!(frames.complete, 3, "in pieces of {size}");
        }
    }
}
