//! STATUS replies.

use crate::{
    error::{ClientError, SftpError},
    protocol::sftp::{Reply, status as codes},
};

/// Whether `reply` is the end of a file or a listing.
pub(super) fn is_end(reply: &Reply) -> bool {
    matches!(reply, Reply::Status { code, .. } if *code == codes::EOF)
}

/// Checks that a reply is OK.
pub(super) fn done(reply: Reply, action: &'static str) -> Result<(), ClientError> {
    match reply {
        Reply::Status { code, .. } if code == codes::OK => Ok(()),
        reply => Err(refused(reply, action)),
    }
}

/// The error of a reply that is not of the expected type.
pub(super) fn refused(reply: Reply, action: &'static str) -> ClientError {
    match reply {
        Reply::Status { code, .. } if code == codes::OK => {
            ClientError::protocol(format!("OK instead of a result: cannot {action}"))
        }
        Reply::Status { code, message } => ClientError::File {
            endpoint: None,
            action,
            source: SftpError::new(code, &message),
        },
        _ => ClientError::protocol(format!("a reply of the wrong kind: cannot {action}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_status_code_is_an_error_of_the_file() {
        let reply = Reply::Status {
            code: 14,
            message: "no space".into(),
        };
        match refused(reply, "write") {
            ClientError::File { source, .. } => {
                assert_eq!((source.code(), source.text()), (14, "no space"));
            }
            other => panic!("{other:?}"),
        }
    }
}
