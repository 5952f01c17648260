//! The HTTP status of each error of the modules behind the API.

use http::StatusCode;

use crate::{
    http::reply::ApiError, lxd_host::host::HostError, operation::OperationError,
    port_forward::DialError, system::state::StateError,
};

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<StateError> for ApiError {
    fn from(error: StateError) -> Self {
        tracing::error!(%error, "request failed");
        Self::internal(&error)
    }
}

impl From<DialError> for ApiError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Port | DialError::Name(_) => Self::bad_request(error.to_string()),
            DialError::Timeout(_) | DialError::Connect(..) => Self::internal(&error),
        }
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        let status = match error {
            OperationError::Unknown(_) => StatusCode::NOT_FOUND,
            OperationError::WrongSecret => StatusCode::FORBIDDEN,
            OperationError::Ended => StatusCode::BAD_REQUEST,
            OperationError::Full => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}
