//! A command on one HTTP/2 stream: the frames of both bodies.
//!
//! ```text
//! POST /1.0/exec-stream ──► Request, then Data(Stdin), Close(Stdin), Resize, Signal, Ping, Credit
//!                200 OK ◄── Data(Stdout), Data(Stderr), Close(…), Pong, Credit, and last Status
//! ```
//!
//! A frame is a channel of one byte, the length of its payload in three bytes, and the payload; numbers are
//! big-endian. The channels are those of Kubernetes' `v5.channel.k8s.io` as far as that has them
//! (`k8s.io/apimachinery/pkg/util/remotecommand/constants.go`). `protocol/exec-stream.md` describes the
//! whole exchange.
//!
//! Each of the three data channels has a window: its sender may have sent as many bytes as the receiver has
//! granted with [`Frame::Credit`] beyond the first [`INPUT_WINDOW_BYTES`] or [`OUTPUT_WINDOW_BYTES`]. So the
//! receiver can always read on, and an input that the command does not read delays no signal.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Size of a frame's head, in bytes.
pub const HEAD_BYTES: usize = 4;

/// Largest payload of [`Frame::Request`] and [`Frame::Status`], in bytes: that of a request's body.
pub const MAX_JSON_BYTES: usize = 4 * 1024 * 1024;

/// Largest payload of a data frame, in bytes: what three bytes can say.
pub const MAX_DATA_BYTES: usize = 0xff_ffff;

/// Largest payload of [`Frame::Ping`] and [`Frame::Pong`], in bytes.
pub const MAX_PING_BYTES: usize = 8;

/// Bytes of standard input that a client may send before the agent grants more. The agent stores them for a
/// command that does not read; there may be a thousand.
pub const INPUT_WINDOW_BYTES: u32 = 256 * 1024;

/// Bytes of standard output, and of standard error, that an agent may send before the client grants more.
pub const OUTPUT_WINDOW_BYTES: u32 = 1024 * 1024;

const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const SIGNAL: u8 = 5;
const CREDIT: u8 = 6;
const REQUEST: u8 = 7;
const PING: u8 = 8;
const PONG: u8 = 9;
const ABORT: u8 = 10;
const CLOSE: u8 = 255;

/// A channel of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataChannel {
    /// Standard input, or the input of a terminal. Client to agent.
    Stdin = 0,
    /// Standard output, or the output of a terminal. Agent to client.
    Stdout = 1,
    /// Standard error. Agent to client.
    Stderr = 2,
}

impl DataChannel {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// A frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame {
    /// Bytes of a channel, never empty. A decoder gives those of one frame in one or more pieces.
    Data(DataChannel, Bytes),
    /// The last frame of an agent: the ended operation, as JSON (`protocol::operation`).
    Status(Bytes),
    /// Size of the terminal, in character cells.
    Resize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        lines: u16,
    },
    /// A signal for the command, by its number.
    Signal(u8),
    /// The sender of this channel may send this many bytes more.
    Credit(DataChannel, u32),
    /// The first frame of a client: `ExecRequest` as JSON.
    Request(Bytes),
    /// Asks for a pong with the same payload. Everything before it was received then.
    Ping(Bytes),
    /// The answer to a ping.
    Pong(Bytes),
    /// The client cannot send the rest of the input: the agent ends the command, which sees no end of it.
    Abort,
    /// The end of a channel: of the input by the client, of an output by the agent. From the agent for
    /// the input: the command takes no more.
    Close(DataChannel),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// There is no such channel.
    #[error("there is no channel {0}")]
    Channel(u8),
    /// The payload has a length that this channel does not have.
    #[error("a frame of channel {channel} with {length} bytes")]
    Length {
        /// The channel.
        channel: u8,
        /// Length of its payload, in bytes.
        length: usize,
    },
}

/// The head of a frame with data. `length` is at most [`MAX_DATA_BYTES`].
#[must_use]
pub const fn data_head(channel: DataChannel, length: usize) -> [u8; HEAD_BYTES] {
    head(channel as u8, length)
}

const fn head(channel: u8, length: usize) -> [u8; HEAD_BYTES] {
    let [.., high, middle, low] = length.to_be_bytes();
    [channel, high, middle, low]
}

impl Frame {
    /// Appends the encoded frame. A payload of more than [`MAX_DATA_BYTES`] is a mistake of the caller, and
    /// not decodable.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut put = |channel, payload: &[u8]| {
            out.reserve(HEAD_BYTES + payload.len());
            out.put_slice(&head(channel, payload.len()));
            out.put_slice(payload);
        };
        match self {
            Self::Data(channel, data) => put(*channel as u8, data),
            Self::Status(json) => put(STATUS, json),
            Self::Resize { columns, lines } => {
                let ([a, b], [c, d]) = (columns.to_be_bytes(), lines.to_be_bytes());
                put(RESIZE, &[a, b, c, d]);
            }
            Self::Signal(number) => put(SIGNAL, &[*number]),
            Self::Credit(channel, bytes) => {
                let [a, b, c, d] = bytes.to_be_bytes();
                put(CREDIT, &[*channel as u8, a, b, c, d]);
            }
            Self::Request(json) => put(REQUEST, json),
            Self::Ping(payload) => put(PING, payload),
            Self::Pong(payload) => put(PONG, payload),
            Self::Abort => put(ABORT, &[]),
            Self::Close(channel) => put(CLOSE, &[*channel as u8]),
        }
    }

    /// The encoded frame.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// A frame that is not data, from its whole payload.
    fn parse(channel: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        let length = payload.len();
        let wrong = FrameError::Length { channel, length };
        let data_channel = |payload: &mut Bytes| {
            let number = payload.get_u8();
            DataChannel::from_number(number).ok_or(FrameError::Channel(number))
        };
        Ok(match (channel, length) {
            (STATUS, _) => Self::Status(payload),
            (REQUEST, _) => Self::Request(payload),
            (RESIZE, 4) => Self::Resize {
                columns: payload.get_u16(),
                lines: payload.get_u16(),
            },
            (SIGNAL, 1) => Self::Signal(payload.get_u8()),
            (CREDIT, 5) => Self::Credit(data_channel(&mut payload)?, payload.get_u32()),
            (PING, ..=MAX_PING_BYTES) => Self::Ping(payload),
            (PONG, ..=MAX_PING_BYTES) => Self::Pong(payload),
            (ABORT, 0) => Self::Abort,
            (CLOSE, 1) => Self::Close(data_channel(&mut payload)?),
            _ => return Err(wrong),
        })
    }
}

/// Largest payload of a channel, in bytes. `None` if there is no such channel.
const fn longest(channel: u8) -> Option<usize> {
    Some(match channel {
        0..=2 => MAX_DATA_BYTES,
        STATUS | REQUEST => MAX_JSON_BYTES,
        RESIZE => 4,
        SIGNAL | CLOSE => 1,
        CREDIT => 5,
        PING | PONG => MAX_PING_BYTES,
        ABORT => 0,
        _ => return None,
    })
}

/// Decodes frames from the chunks of a body. Data is passed on without copying and without waiting for the
/// rest of its frame; of other frames, at most [`MAX_JSON_BYTES`] are stored.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The head, or the part of it that has arrived.
    head: [u8; HEAD_BYTES],
    head_filled: usize,
    /// Bytes of the payload that have not arrived.
    missing: usize,
    /// The payload of a frame that is not data, as far as it has arrived.
    stored: BytesMut,
}

impl Decoder {
    /// Takes the next frame, or piece of a data frame, from the beginning of `chunk`. `None` when `chunk`
    /// is used up.
    ///
    /// # Errors
    ///
    /// [`FrameError`]. The rest of the body cannot be decoded then.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.head_filled < HEAD_BYTES {
                if !self.take_head(chunk)? {
                    return Ok(None);
                }
                self.stored = BytesMut::new();
            }
            let channel = self.head[0];
            let piece = chunk.split_to(self.missing.min(chunk.len()));
            self.missing -= piece.len();
            let is_complete = self.missing == 0;
            if is_complete {
                self.head_filled = 0;
            }
            if let Some(channel) = DataChannel::from_number(channel) {
                if !piece.is_empty() {
                    return Ok(Some(Frame::Data(channel, piece)));
                }
            } else if is_complete && self.stored.is_empty() {
                return Frame::parse(channel, piece).map(Some);
            } else {
                self.stored.extend_from_slice(&piece);
                if is_complete {
                    let payload = std::mem::take(&mut self.stored).freeze();
                    return Frame::parse(channel, payload).map(Some);
                }
            }
            if chunk.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Whether a frame has begun and is not complete.
    #[must_use]
    pub const fn is_within_frame(&self) -> bool {
        self.head_filled > 0
    }

    /// Whether the head is complete now.
    fn take_head(&mut self, chunk: &mut Bytes) -> Result<bool, FrameError> {
        let rest = &mut self.head[self.head_filled..];
        let count = rest.len().min(chunk.len());
        chunk.copy_to_slice(&mut rest[..count]);
        self.head_filled += count;
        if self.head_filled < HEAD_BYTES {
            return Ok(false);
        }
        let [channel, high, middle, low] = self.head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        match longest(channel) {
            None => return Err(FrameError::Channel(channel)),
            Some(limit) if length > limit => return Err(FrameError::Length { channel, length }),
            Some(_) => self.missing = length,
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let json = Bytes::from_static(b"{\"command\":[\"true\"]}");
        vec![
            Frame::Request(json.clone()),
            Frame::Data(DataChannel::Stdin, Bytes::from_static(b"hello")),
            Frame::Resize {
                columns: 80,
                lines: 0x1234,
            },
            Frame::Signal(15),
            Frame::Credit(DataChannel::Stderr, 0x0102_0304),
            Frame::Ping(Bytes::from_static(b"12345678")),
            Frame::Pong(Bytes::new()),
            Frame::Abort,
            Frame::Close(DataChannel::Stdin),
            Frame::Status(json),
        ]
    }

    /// The frames of `body`, which arrives in chunks of `size` bytes; pieces of data are joined.
    fn decode(body: &[u8], size: usize) -> Result<Vec<Frame>, FrameError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in body.chunks(size) {
            let mut chunk = Bytes::copy_from_slice(chunk);
            while let Some(frame) = decoder.next(&mut chunk)? {
                match (frames.last_mut(), frame) {
                    (Some(Frame::Data(last, before)), Frame::Data(channel, data))
                        if *last == channel =>
                    {
                        *before = [&before[..], &data].concat().into();
                    }
                    (_, frame) => frames.push(frame),
                }
            }
            assert!(chunk.is_empty());
        }
        assert!(!decoder.is_within_frame());
        Ok(frames)
    }

    #[test]
    fn frames_are_decoded_however_their_bytes_arrive() {
        let mut body = BytesMut::new();
        frames().iter().for_each(|frame| frame.encode(&mut body));
        for size in 1..=body.len() {
            assert_eq!(decode(&body, size).unwrap(), frames(), "{size}");
        }
    }

    #[test]
    fn data_is_passed_on_before_its_frame_is_complete() {
        let mut decoder = Decoder::default();
        let mut chunk = Bytes::from_static(b"\x01\x00\x00\x05hel");
        let piece = Frame::Data(DataChannel::Stdout, Bytes::from_static(b"hel"));
        assert_eq!(decoder.next(&mut chunk), Ok(Some(piece)));
        assert!(decoder.is_within_frame());
    }

    #[test]
    fn a_frame_that_no_channel_has_is_an_error() {
        for body in [
            &b"\x0b\x00\x00\x00"[..],
            b"\x04\x00\x00\x03abc",
            b"\x05\x00\x00\x00",
            b"\x06\x00\x00\x05\x03\x00\x00\x00\x01",
            b"\x08\x00\x00\x09123456789",
            b"\xff\x00\x00\x01\x09",
            b"\x07\x40\x00\x01",
        ] {
            decode(body, body.len()).unwrap_err();
        }
    }
}
