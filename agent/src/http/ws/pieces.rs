//! Cuts large messages into small ones, before tungstenite reads them.
//!
//! On a stream of data the boundaries of messages have no meaning, and LXD's clients may send messages of
//! any size. Tungstenite buffers a whole message, so its input is rewritten: each data frame becomes one
//! or more messages of [`MAX_PIECE_BYTES`] at most. Control frames pass unchanged. A violation of RFC 6455
//! is an error.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest resulting message, in bytes: the capacity of a pipe. A multiple of 4, so that the mask of a
/// frame applies to each piece of it.
const MAX_PIECE_BYTES: u64 = 64 * 1024;

/// Longest head of a frame: two bytes, a length of 64 bits, a mask (RFC 6455, section 5.2).
const MAX_HEAD_BYTES: usize = 14;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const FIRST_CONTROL: u8 = 8;
const LAST_CONTROL: u8 = 10;
const MASKED: u8 = 0x80;
/// Longest payload of a control frame, in bytes (RFC 6455, section 5.5).
const MAX_CONTROL_BYTES: u64 = 125;

/// A connection from which a server reads frames.
#[derive(Debug)]
pub(crate) struct Pieces<S> {
    io: S,
    cut: Option<Cut>,
}

impl<S> Pieces<S> {
    /// Passes everything unchanged.
    pub(super) fn uncut(io: S) -> Self {
        Self { io, cut: None }
    }

    /// Cuts large messages.
    pub(super) fn cut(io: S) -> Self {
        Self {
            io,
            cut: Some(Cut::default()),
        }
    }
}

/// The state of the reader in the stream of frames.
#[derive(Debug, Default)]
struct Cut {
    /// The bytes read of a frame's head.
    head: Head,
    /// The head of a piece, to be passed on.
    due: Head,
    /// Bytes of `due` that were passed on.
    given: usize,
    /// First byte of the heads of this frame's pieces.
    first: u8,
    mask: [u8; 4],
    /// Bytes of the frame that belong to no piece yet.
    left: u64,
    /// Bytes of the piece that are still to be read.
    piece: u64,
    /// Kind of the message of which there are more frames to come.
    message: Option<u8>,
}

/// The first bytes of a frame.
#[derive(Debug, Default)]
struct Head {
    bytes: [u8; MAX_HEAD_BYTES],
    length: usize,
}

impl Head {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    /// The size of the head, as far as it is known.
    fn wanted(&self) -> usize {
        if self.length < 2 {
            return 2;
        }
        let length = match self.bytes[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        // A frame without a mask is refused.
        2 + length + 4
    }

    /// Length of the payload. The head must be complete.
    fn payload(&self) -> u64 {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        match self.bytes[1] & !MASKED {
            126 => number(&self.bytes[2..4]),
            127 => number(&self.bytes[2..10]),
            short => short.into(),
        }
    }

    fn mask(&self) -> [u8; 4] {
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.bytes[self.length - 4..self.length]);
        mask
    }
}

impl Cut {
    /// Checks the frame's head, and starts its first piece.
    fn start_frame(&mut self) -> io::Result<()> {
        let head = std::mem::take(&mut self.head);
        let (first, length) = (head.bytes[0], head.payload());
        let (is_last, opcode) = (first & FIN != 0, first & OPCODE);
        if head.bytes[1] & MASKED == 0 {
            return Err(invalid("a frame without a mask"));
        }
        if first & RESERVED != 0 || length > i64::MAX.unsigned_abs() {
            return Err(invalid("a frame with a reserved bit"));
        }
        self.first = match (opcode, self.message) {
            (FIRST_CONTROL..=LAST_CONTROL, _) if is_last && length <= MAX_CONTROL_BYTES => first,
            (CONTINUATION, Some(message)) => FIN | message,
            (1..=BINARY, None) => FIN | opcode,
            _ => return Err(invalid("a frame that must not be here")),
        };
        if opcode < FIRST_CONTROL {
            self.message = (!is_last).then_some(self.first & OPCODE);
        }
        (self.mask, self.left) = (head.mask(), length);
        self.start_piece();
        Ok(())
    }

    fn start_piece(&mut self) {
        self.piece = self.left.min(MAX_PIECE_BYTES);
        self.left -= self.piece;
        let mut head = Head::default();
        // It fits: a length above 16 bits is that of one whole piece.
        match (u8::try_from(self.piece), u16::try_from(self.piece)) {
            (Ok(short @ ..=125), _) => head.push(&[self.first, MASKED | short]),
            (_, Ok(medium)) => {
                head.push(&[self.first, MASKED | 126]);
                head.push(&medium.to_be_bytes());
            }
            _ => {
                head.push(&[self.first, MASKED | 127]);
                head.push(&self.piece.to_be_bytes());
            }
        }
        head.push(&self.mask);
        (self.due, self.given) = (head, 0);
    }

    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut io = Pin::new(io);
        while buffer.remaining() > 0 {
            let due = &self.due.bytes[self.given..self.due.length];
            if !due.is_empty() {
                let count = due.len().min(buffer.remaining());
                buffer.put_slice(&due[..count]);
                self.given += count;
                return Poll::Ready(Ok(()));
            }
            if self.piece > 0 {
                let limit = usize::try_from(self.piece).unwrap_or(usize::MAX);
                let limit = limit.min(buffer.remaining());
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
                ready!(io.as_mut().poll_read(cx, &mut part))?;
                let count = part.filled().len();
                buffer.advance(count);
                self.piece -= count as u64;
                return Poll::Ready(Ok(()));
            }
            if self.left > 0 {
                self.start_piece();
                continue;
            }
            let wanted = self.head.wanted();
            let mut part = ReadBuf::new(&mut self.head.bytes[self.head.length..wanted]);
            ready!(io.as_mut().poll_read(cx, &mut part))?;
            let count = part.filled().len();
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            self.head.length += count;
            if self.head.length == self.head.wanted() {
                self.start_frame()?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Pieces<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, cut } = &mut *self;
        match cut {
            Some(cut) => cut.poll_read(io, cx, buffer),
            None => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Pieces<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::AsyncWriteExt;
    use tokio_tungstenite::{
        WebSocketStream,
        tungstenite::{
            Error as WsError, Message,
            protocol::{
                Role,
                frame::{
                    Frame,
                    coding::{Data, OpCode},
                },
            },
        },
    };

    use super::*;

    /// What comes out of `frames`, raw.
    async fn read(frames: Vec<u8>) -> Vec<Result<Message, WsError>> {
        let (mut near, far) = tokio::io::duplex(1000);
        let mut socket =
            WebSocketStream::from_raw_socket(Pieces::cut(far), Role::Server, None).await;
        let write = async move {
            // The other end may be gone.
            let _ = near.write_all(&frames).await;
        };
        let read = async {
            let mut messages = Vec::new();
            while let Some(message) = socket.next().await {
                messages.push(message);
            }
            messages
        };
        tokio::join!(write, read).1
    }

    fn frame(first: u8, length: u64, mask: [u8; 4], data: &[u8]) -> Vec<u8> {
        let mut frame = vec![first, MASKED | 127];
        frame.extend(length.to_be_bytes());
        frame.extend(mask);
        frame.extend(data.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
        frame
    }

    fn data(messages: &[Result<Message, WsError>]) -> Vec<u8> {
        let pieces = messages.iter().map_while(|message| match message {
            Ok(Message::Binary(data)) => Some(data.to_vec()),
            _ => None,
        });
        pieces.flatten().collect()
    }

    #[tokio::test]
    async fn a_frame_of_any_size_comes_in_pieces_and_so_does_a_message_of_many_frames() {
        let sent: Vec<u8> = (0..300_001_u32)
            .map(|n| (n >> 3).to_le_bytes()[0])
            .collect();
        let mask = [1, 2, 3, 4];
        let whole = frame(FIN | BINARY, 300_001, mask, &sent);
        let mut many = frame(BINARY, 100_000, mask, &sent[..100_000]);
        many.extend([FIN | 9, MASKED | 1, 0, 0, 0, 0, b'p']);
        many.extend(frame(0, 200_000, mask, &sent[100_000..300_000]));
        many.extend([FIN, MASKED | 1, 0, 0, 0, 0, sent[300_000]]);
        for (frames, pieces) in [(whole, 5), (many, 2 + 4 + 1 + 1)] {
            let messages = read(frames).await;
            let data: Vec<_> = messages.iter().filter(|m| !is_ping(m)).collect();
            let bytes: Vec<u8> = data
                .iter()
                .flat_map(|message| match message {
                    Ok(Message::Binary(data)) => data.to_vec(),
                    _ => Vec::new(),
                })
                .collect();
            assert_eq!(messages.len(), pieces + 1, "and the loss of the connection");
            assert!(bytes == sent);
            assert!(messages.last().unwrap().is_err());
        }
    }

    fn is_ping(message: &Result<Message, WsError>) -> bool {
        matches!(message, Ok(Message::Ping(_)))
    }

    #[tokio::test]
    async fn a_frame_that_is_cut_short_is_no_end() {
        let frames = frame(FIN | BINARY, u64::MAX >> 1, [9; 4], &[5; 100_000]);
        let messages = read(frames).await;
        assert_eq!(data(&messages), [5; 65536]);
        assert!(messages[1].is_err());
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error_and_not_an_end() {
        let text = [FIN | 1, MASKED | 2, 0, 0, 0, 0, b'o', b'k'];
        let unmasked = vec![FIN | BINARY, 2, b'o', b'k', 0, 0];
        for bad in [
            unmasked,
            vec![FIN | 0x40 | BINARY, MASKED, 0, 0, 0, 0],
            vec![FIN | 3, MASKED, 0, 0, 0, 0],
            vec![FIN | 11, MASKED, 0, 0, 0, 0],
            vec![9, MASKED, 0, 0, 0, 0],
            vec![FIN, MASKED, 0, 0, 0, 0],
            [[BINARY, MASKED, 0, 0, 0, 0], [BINARY, MASKED, 0, 0, 0, 0]].concat(),
            frame(FIN | 9, 126, [0; 4], &[0; 126]),
            frame(FIN | BINARY, u64::MAX, [0; 4], &[]),
        ] {
            let messages = read([bad.clone(), text.to_vec()].concat()).await;
            let error = messages.last().unwrap();
            assert!(
                matches!(error, Err(WsError::Io(_))),
                "{bad:?}: {messages:?}"
            );
            assert!(data(&messages).is_empty());
        }
    }

    #[tokio::test]
    async fn what_an_ordinary_client_sends_arrives_as_it_is() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let mut server =
            WebSocketStream::from_raw_socket(Pieces::cut(far), Role::Server, None).await;
        let fragment = Frame::message(&b"two"[..], OpCode::Data(Data::Continue), true);
        for message in [
            Message::binary(vec![7; 65535]),
            Message::binary(vec![8; 126]),
            Message::binary(Vec::new()),
            Message::text("end"),
            Message::Ping(vec![1].into()),
        ] {
            client.send(message.clone()).await.unwrap();
            assert_eq!(server.next().await.unwrap().unwrap(), message);
        }
        let one = Frame::message(&b"one"[..], OpCode::Data(Data::Binary), false);
        client.send(Message::Frame(one)).await.unwrap();
        client.send(Message::Frame(fragment)).await.unwrap();
        client.close(None).await.unwrap();
        for expected in [&b"one"[..], b"two"] {
            let message = server.next().await.unwrap().unwrap();
            assert_eq!(message, Message::binary(expected));
        }
        assert!(server.next().await.unwrap().unwrap().is_close());
    }
}
