//! SFTP version 3 (`draft-ietf-secsh-filexfer-02`): frames to values and back.
//!
//! Names, handles and link targets are bytes, as on the wire and in the kernel. A frame is
//! `u32 length, u8 type, …`; [`FrameHead`] reads the length, so that a reader can refuse a frame
//! before it stores it. What decoding allocates is bounded by the frame: a dozen times its size, for
//! a listing of empty names.
//!
//! For SYMLINK, [`Request::Symlink`] names its two paths by what they are; on the wire the target
//! comes first, as OpenSSH and every other implementation write it, against the draft.

mod attributes;
mod codec;
mod data;
pub mod extension;
mod mode;
mod reply;
mod request;
mod session;

pub use attributes::{Attributes, Owner, Times};
pub use codec::{DecodeError, FrameHead};
pub use data::{DataRequest, WriteHead};
pub use mode::{FileType, PERMISSION_BITS, mode_text};
pub use reply::{Name, Reply};
pub use request::Request;
pub use session::{SessionOptions, SessionOptionsError};

/// The version both ends speak.
pub const VERSION: u32 = 3;

/// Largest frame, in bytes, the length word not counted: what OpenSSH's server and client accept
/// (`SFTP_MAX_MSG_LENGTH`, `sftp-common.h`).
pub const MAX_FRAME_BYTES: u32 = 256 * 1024;

/// Largest piece of a file in one READ or WRITE, in bytes: the frame less 1 KiB for its head, the
/// figure OpenSSH's server gives for `limits@openssh.com` (`sftp-server.c`).
pub const MAX_DATA_BYTES: u32 = MAX_FRAME_BYTES - 1024;

/// Largest handle, in bytes (draft-02, section 6.3).
pub const MAX_HANDLE_BYTES: usize = 256;

/// Bits of the `pflags` word of OPEN (draft-02, section 6.3).
pub mod open_flags {
    /// Open for reading.
    pub const READ: u32 = 0x01;
    /// Open for writing.
    pub const WRITE: u32 = 0x02;
    /// Every write goes to the end.
    pub const APPEND: u32 = 0x04;
    /// Create the file if it is not there.
    pub const CREATE: u32 = 0x08;
    /// Empty the file.
    pub const TRUNCATE: u32 = 0x10;
    /// With [`CREATE`]: fail if it is there.
    pub const EXCLUSIVE: u32 = 0x20;
}

/// Codes of the STATUS reply (draft-02, section 7).
pub mod status {
    /// Success.
    pub const OK: u32 = 0;
    /// End of a file or a listing.
    pub const EOF: u32 = 1;
    /// A path does not exist.
    pub const NO_SUCH_FILE: u32 = 2;
    /// Permission denied.
    pub const PERMISSION_DENIED: u32 = 3;
    /// Any other error; the message describes it.
    pub const FAILURE: u32 = 4;
    /// The request is invalid.
    pub const BAD_MESSAGE: u32 = 5;
    /// The client has no connection (never sent by a server).
    pub const NO_CONNECTION: u32 = 6;
    /// The connection ended (never sent by a server).
    pub const CONNECTION_LOST: u32 = 7;
    /// The server does not support the operation.
    pub const OP_UNSUPPORTED: u32 = 8;

    /// The message for a code.
    #[must_use]
    pub const fn text(code: u32) -> &'static str {
        match code {
            OK => "success",
            EOF => "end of file",
            NO_SUCH_FILE => "no such file",
            PERMISSION_DENIED => "permission denied",
            FAILURE => "failure",
            BAD_MESSAGE => "bad message",
            NO_CONNECTION => "no connection",
            CONNECTION_LOST => "connection lost",
            OP_UNSUPPORTED => "operation unsupported",
            _ => "unknown status",
        }
    }
}
