//! Requests that have no method of their own, and their replies.

use http::{StatusCode, uri::PathAndQuery};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::ClientError,
    http::{metadata, take_envelope},
};

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Reads something. Such a request may be sent again when its connection is lost.
    Get,
    /// Replaces something.
    Put,
    /// Makes something.
    Post,
    /// Changes something.
    Patch,
    /// Removes something.
    Delete,
}

impl Method {
    pub(crate) const fn on_wire(self) -> http::Method {
        match self {
            Self::Get => http::Method::GET,
            Self::Put => http::Method::PUT,
            Self::Post => http::Method::POST,
            Self::Patch => http::Method::PATCH,
            Self::Delete => http::Method::DELETE,
        }
    }
}

/// A reply of any status, to [`Client::request`](crate::Client::request).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body. It comes from the guest.
    pub body: Value,
}

impl Reply {
    /// A reply, for tests of its callers.
    #[must_use]
    pub const fn new(status: u16, body: Value) -> Self {
        Self { status, body }
    }

    /// The `metadata` of a reply in LXD's envelope.
    ///
    /// # Errors
    ///
    /// [`ClientError::Agent`] for a reply that is an error; [`ClientError::Protocol`] for one without an
    /// envelope, or when its `metadata` is no `T`.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        let status = StatusCode::from_u16(self.status)
            .map_err(|error| ClientError::protocol_because("no status of HTTP", error))?;
        let envelope = take_envelope(status, self.body.to_string().as_bytes())?;
        metadata(envelope, "the result")
    }
}

/// Checks the path of a request.
pub(crate) fn checked(path: &str) -> Result<&str, ClientError> {
    let is_valid = path.starts_with('/') && path.parse::<PathAndQuery>().is_ok();
    is_valid.then_some(path).ok_or_else(|| {
        let reason = format!("{path:?} is no path of a request");
        ClientError::invalid_argument("send a request", reason)
    })
}

/// Checks the name of a protocol to upgrade to: a token (RFC 9110, section 7.8).
pub(crate) fn checked_protocol(name: &str) -> Result<&str, ClientError> {
    // The names of headers are tokens too.
    let is_valid = name
        .split('/')
        .all(|part| http::HeaderName::try_from(part).is_ok());
    is_valid.then_some(name).ok_or_else(|| {
        let reason = format!("{name:?} is no name of a protocol");
        ClientError::invalid_argument("upgrade a connection", reason)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_that_would_be_another_request_is_refused() {
        for path in ["", "1.0", "http://elsewhere/", "/a b", "/a\r\nHost: b", "*"] {
            let refused = checked(path).unwrap_err();
            assert!(matches!(refused, ClientError::Local { .. }), "{path:?}");
        }
        for path in ["/", "/1.0/state", "/1.0/operations?recursion=1&x=%20"] {
            assert_eq!(checked(path).unwrap(), path);
        }
    }

    #[test]
    fn a_protocol_is_a_name_with_a_version_at_most() {
        for name in ["sftp", "tcp", "websocket", "IRC/6.9"] {
            assert_eq!(checked_protocol(name).unwrap(), name);
        }
        for name in ["", "a b", "a, b", "a\r\nb", "a/"] {
            checked_protocol(name).unwrap_err();
        }
    }

    #[test]
    fn metadata_is_that_of_a_result_only() {
        let result = json!({"type": "sync", "metadata": [1, 2]});
        assert_eq!(
            Reply::new(200, result).metadata::<Vec<u8>>().unwrap(),
            [1, 2]
        );
        let refused =
            json!({"type": "error", "error": "gone", "error_code": 404, "metadata": null});
        let error = Reply::new(404, refused).metadata::<Value>().unwrap_err();
        assert!(
            matches!(error, ClientError::Agent { status: 404, .. }),
            "{error:?}"
        );
        for body in [json!(3), json!({"type": "sync", "metadata": "text"})] {
            let error = Reply::new(200, body).metadata::<u8>().unwrap_err();
            assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        }
    }
}
