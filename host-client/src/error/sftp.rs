//! The errors of an SFTP server.

use std::{error::Error, fmt};

use super::bounded;
use crate::protocol::sftp::status as codes;

/// An error that an SFTP server reported: a code and a message. The source of [`ClientError::File`].
///
/// [`ClientError::File`]: crate::ClientError::File
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SftpError {
    code: u32,
    text: String,
}

impl SftpError {
    /// An error with this code and message. At most 1,000 characters of the message are kept.
    #[must_use]
    pub fn new(code: u32, message: impl AsRef<[u8]>) -> Self {
        Self {
            code,
            text: bounded(&String::from_utf8_lossy(message.as_ref())),
        }
    }

    /// The code (draft-02, section 7); servers may send others than those of the draft.
    #[must_use]
    pub const fn code(&self) -> u32 {
        self.code
    }

    /// The server's message. It comes from the guest: escape it before printing it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path does not exist.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        self.code == codes::NO_SUCH_FILE
    }

    /// Whether permission was denied.
    #[must_use]
    pub const fn is_permission_denied(&self) -> bool {
        self.code == codes::PERMISSION_DENIED
    }

    /// Whether the server does not support the operation.
    #[must_use]
    pub const fn is_unsupported(&self) -> bool {
        self.code == codes::OP_UNSUPPORTED
    }
}

impl Error for SftpError {}

impl fmt::Display for SftpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.text.is_empty() {
            f.write_str(&self.text)
        } else if self.code <= codes::OP_UNSUPPORTED {
            f.write_str(codes::text(self.code))
        } else {
            write!(f, "status {}", self.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_a_message_is_printed_by_its_code() {
        assert_eq!(SftpError::new(14, b"").to_string(), "status 14");
        assert_eq!(SftpError::new(2, b"").to_string(), "no such file");
    }
}
