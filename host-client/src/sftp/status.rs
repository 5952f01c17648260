//! What a server says when it has nothing else to say.

use std::fmt;

use russh_sftp::protocol::StatusCode;

use crate::{
    error::{ClientError, bounded},
    protocol::sftp::{Reply, status as codes},
};

/// Why a server refused: a code and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatus {
    code: u32,
    text: String,
}

impl FileStatus {
    pub(super) fn new(code: u32, message: &[u8]) -> Self {
        Self {
            code,
            text: bounded(&String::from_utf8_lossy(message)),
        }
    }

    /// The code (draft-02, section 7); servers may send others than those of the draft.
    #[must_use]
    pub const fn code(&self) -> u32 {
        self.code
    }

    /// The server's words. They come from the guest: escape them before they reach a terminal.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a path leads nowhere.
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(name(self.code), Some(StatusCode::NoSuchFile))
    }

    /// Whether it is not allowed.
    #[must_use]
    pub const fn is_permission_denied(&self) -> bool {
        matches!(name(self.code), Some(StatusCode::PermissionDenied))
    }

    /// Whether the server cannot do this at all.
    #[must_use]
    pub const fn is_unsupported(&self) -> bool {
        matches!(name(self.code), Some(StatusCode::OpUnsupported))
    }
}

impl fmt::Display for FileStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.is_empty() {
            false => f.write_str(&self.text),
            true if name(self.code).is_some() => f.write_str(codes::text(self.code)),
            true => write!(f, "status {}", self.code),
        }
    }
}

/// The name of a code. A code without one is a failure like another, never the end of a session.
const fn name(code: u32) -> Option<StatusCode> {
    Some(match code {
        codes::OK => StatusCode::Ok,
        codes::EOF => StatusCode::Eof,
        codes::NO_SUCH_FILE => StatusCode::NoSuchFile,
        codes::PERMISSION_DENIED => StatusCode::PermissionDenied,
        codes::FAILURE => StatusCode::Failure,
        codes::BAD_MESSAGE => StatusCode::BadMessage,
        codes::NO_CONNECTION => StatusCode::NoConnection,
        codes::CONNECTION_LOST => StatusCode::ConnectionLost,
        codes::OP_UNSUPPORTED => StatusCode::OpUnsupported,
        _ => return None,
    })
}

/// Whether `reply` says that there is no more.
pub(super) fn is_end(reply: &Reply) -> bool {
    matches!(reply, Reply::Status { code, .. } if name(*code) == Some(StatusCode::Eof))
}

/// Reads a reply that must be OK.
pub(super) fn done(reply: Reply, action: &'static str) -> Result<(), ClientError> {
    match reply {
        Reply::Status { code, .. } if name(code) == Some(StatusCode::Ok) => Ok(()),
        reply => Err(refused(reply, action)),
    }
}

/// The error in a reply that is not the one hoped for.
pub(super) fn refused(reply: Reply, action: &'static str) -> ClientError {
    match reply {
        Reply::Status { code, .. } if name(code) == Some(StatusCode::Ok) => {
            ClientError::protocol(format!("OK where an answer was due: cannot {action}"))
        }
        Reply::Status { code, message } => ClientError::File {
            action,
            status: FileStatus::new(code, &message),
        },
        _ => ClientError::protocol(format!("a reply of the wrong kind: cannot {action}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_a_failure_like_another() {
        let reply = Reply::Status {
            code: 14,
            message: "no space".into(),
        };
        match refused(reply, "write") {
            ClientError::File { status, .. } => {
                assert_eq!((status.code(), status.text()), (14, "no space"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(FileStatus::new(14, b"").to_string(), "status 14");
        assert_eq!(FileStatus::new(2, b"").to_string(), "no such file");
    }
}
