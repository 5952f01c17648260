//! Requests to the kernel by `netlink(7)`: messages, attributes, and the exchange itself.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike},
};

/// Size of `struct nlmsghdr` (`linux/netlink.h`), in bytes.
const HEADER_BYTES: usize = 16;

/// Size of `struct rtattr` (`linux/rtnetlink.h`), in bytes.
const ATTRIBUTE_BYTES: usize = 4;

/// Time for the kernel to answer, in seconds.
const ANSWER_TIMEOUT_SECONDS: i64 = 2;

/// A connection to the kernel.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    answer_bytes: usize,
}

impl Netlink {
    /// Opens a socket of one protocol, whose replies come in parts of at most `answer_bytes`.
    ///
    /// # Errors
    ///
    /// The errno of `socket(2)`.
    pub(crate) fn open(protocol: SockProtocol, answer_bytes: usize) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        let limit = TimeVal::seconds(ANSWER_TIMEOUT_SECONDS);
        setsockopt(&socket, ReceiveTimeout, &limit)?;
        Ok(Self {
            socket,
            answer_bytes,
        })
    }

    /// Sends a request with `NLM_F_ACK` or `NLM_F_DUMP`, and calls `part` with the body of each message of
    /// the reply.
    ///
    /// # Errors
    ///
    /// The errno in the reply, or that of `send(2)` or `recv(2)`.
    pub(crate) fn ask(&self, request: &[u8], mut part: impl FnMut(&[u8])) -> io::Result<()> {
        let socket = self.socket.as_raw_fd();
        send(socket, request, MsgFlags::empty())?;
        let mut buffer = vec![0; self.answer_bytes];
        loop {
            let length = recv(socket, &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, body, after)) = split(rest) {
                rest = after;
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        return match read_u32(body)?.cast_signed() {
                            0 => Ok(()),
                            error => Err(io::Error::from_raw_os_error(-error)),
                        };
                    }
                    _ => part(body),
                }
            }
        }
    }
}

/// Splits a buffer after its first message: its type, its body, the rest.
pub(crate) fn split(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(read_u32(buffer).ok()?).ok()?;
    let kind = read_u16(buffer.get(4..)?)?;
    let body = buffer.get(HEADER_BYTES..length)?;
    Some((
        kind,
        body,
        buffer.get(aligned(length)..).unwrap_or_default(),
    ))
}

/// The same, for attributes.
pub(crate) fn split_attribute(buffer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(read_u16(buffer)?);
    let kind = read_u16(buffer.get(2..)?)?;
    let body = buffer.get(ATTRIBUTE_BYTES..length)?;
    Some((
        kind,
        body,
        buffer.get(aligned(length)..).unwrap_or_default(),
    ))
}

/// A message of a header and a body.
pub(crate) fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | flags;
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or_default();
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    // Sequence number and port id may be 0: one request at a time.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// An attribute of a message.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = ATTRIBUTE_BYTES + value.len();
    let mut attribute = Vec::new();
    attribute.extend(u16::try_from(length).unwrap_or_default().to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(aligned(length), 0);
    attribute
}

/// The offset of the next one (`NLMSG_ALIGN`, `RTA_ALIGN`).
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The number at the start of `bytes`. `None` if there are fewer than two.
pub(crate) fn read_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

/// The number of four bytes at the start of `bytes`.
///
/// # Errors
///
/// `InvalidData` if there are fewer.
pub(crate) fn read_u32(bytes: &[u8]) -> io::Result<u32> {
    let bytes = bytes.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    Ok(u32::from_ne_bytes(*bytes))
}
