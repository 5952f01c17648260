//! The frames of a command on one stream against frozen bytes: a change here is a change of the protocol.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use bytes::Bytes;
use vsock_agent_protocol::exec::stream::{
    DataChannel, Decoder, Frame, INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES,
};

/// Each frame and its bytes.
fn frozen() -> Vec<(Frame, &'static [u8])> {
    let text = Bytes::from_static;
    vec![
        (
            Frame::Data(DataChannel::Stdin, text(b"in")),
            b"\x00\x00\x00\x02in",
        ),
        (
            Frame::Data(DataChannel::Stdout, text(b"out")),
            b"\x01\x00\x00\x03out",
        ),
        (
            Frame::Data(DataChannel::Stderr, text(b"err")),
            b"\x02\x00\x00\x03err",
        ),
        (Frame::Status(text(b"{}")), b"\x03\x00\x00\x02{}"),
        (
            Frame::Resize {
                columns: 80,
                lines: 0x0125,
            },
            b"\x04\x00\x00\x04\x00\x50\x01\x25",
        ),
        (Frame::Signal(15), b"\x05\x00\x00\x01\x0f"),
        (
            Frame::Credit(DataChannel::Stdout, 0x0008_0001),
            b"\x06\x00\x00\x05\x01\x00\x08\x00\x01",
        ),
        (Frame::Request(text(b"{}")), b"\x07\x00\x00\x02{}"),
        (Frame::Ping(text(b"p")), b"\x08\x00\x00\x01p"),
        (Frame::Pong(text(b"p")), b"\x09\x00\x00\x01p"),
        (Frame::Abort, b"\x0a\x00\x00\x00"),
        (Frame::Close(DataChannel::Stderr), b"\xff\x00\x00\x01\x02"),
    ]
}

#[test]
fn frames_have_their_frozen_bytes() {
    for (frame, bytes) in frozen() {
        assert_eq!(frame.to_bytes(), bytes, "{frame:?}");
        let mut chunk = Bytes::from_static(bytes);
        let decoded = Decoder::default().next(&mut chunk).unwrap();
        assert_eq!(decoded, Some(frame));
    }
}

#[test]
fn windows_have_their_frozen_sizes() {
    assert_eq!(
        (INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES),
        (262_144, 1_048_576)
    );
}
