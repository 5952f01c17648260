//! SFTP frames, without a server.

use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use vsock_agent_protocol::sftp::{DataRequest, DecodeError, FrameHead, Reply, Request};

use super::Target;

/// Bytes a frame can grow by when it is written again: a STATUS without its two texts, a MKDIR
/// without its attributes.
const MAX_GROWTH_BYTES: usize = 8;

/// What is read, of a stream of frames with their lengths, is read again as it was written.
#[derive(Debug)]
pub struct SftpDecode;

impl Target for SftpDecode {
    const NAME: &'static str = "sftp_decode";
    const RUNS: u32 = 100_000;

    fn start() -> Self {
        Self
    }

    fn run(&self, data: &[u8]) {
        let mut rest = Bytes::copy_from_slice(data);
        while let Some(head) = rest.first_chunk() {
            let Ok(head) = FrameHead::parse(*head) else {
                return;
            };
            drop(rest.split_to(FrameHead::BYTES));
            // The last frame may be cut: what there is of it must be refused or make sense too.
            let length = rest.len().min(head.body_bytes as usize);
            let frame = rest.split_to(length);
            check(&frame, Request::decode, Request::encode);
            check(&frame, Reply::decode, Reply::encode);
            check_in_place(&frame);
        }
    }
}

/// What is read in place is what is read otherwise.
fn check_in_place(frame: &Bytes) {
    let (id, same) = match (DataRequest::decode(frame), Request::decode(frame.clone())) {
        (
            Some((
                id,
                DataRequest::Read {
                    handle,
                    offset,
                    length,
                },
            )),
            Ok((
                same,
                Request::Read {
                    handle: h,
                    offset: o,
                    length: l,
                },
            )),
        ) => {
            assert_eq!((handle, offset, length), (&h[..], o, l));
            (id, same)
        }
        (
            Some((
                id,
                DataRequest::Write {
                    handle,
                    offset,
                    data,
                },
            )),
            Ok((
                same,
                Request::Write {
                    handle: h,
                    offset: o,
                    data: d,
                },
            )),
        ) => {
            assert_eq!((handle, offset, data), (&h[..], o, &d[..]));
            (id, same)
        }
        (None, Ok((_, Request::Read { .. } | Request::Write { .. }))) | (Some(_), _) => {
            panic!("{frame:?} is read in two ways")
        }
        (None, _) => return,
    };
    assert_eq!(id, same);
}

fn check<T: Debug + PartialEq>(
    frame: &Bytes,
    decode: fn(Bytes) -> Result<(u32, T), DecodeError>,
    encode: fn(&T, u32, &mut BytesMut),
) {
    match decode(frame.clone()) {
        Ok((id, value)) => {
            let mut again = BytesMut::new();
            encode(&value, id, &mut again);
            let again = again.freeze().split_off(FrameHead::BYTES);
            assert!(again.len() <= frame.len() + MAX_GROWTH_BYTES, "{value:?}");
            assert_eq!(decode(again), Ok((id, value)));
        }
        Err(DecodeError::Malformed { kind, id } | DecodeError::UnknownType { kind, id }) => {
            assert_eq!(kind, frame.first().copied().unwrap_or(0));
            // Whoever sent it can be told, as long as the id came: INIT and VERSION have none.
            let word = frame.get(1..5).and_then(<[u8]>::first_chunk);
            let sent = word.copied().map(u32::from_be_bytes);
            assert_eq!(id, sent.filter(|_| !matches!(kind, 1 | 2) || id.is_some()));
        }
        Err(error) => panic!("{error} of a frame whose length was right"),
    }
}
