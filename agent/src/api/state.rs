//! `/1.0/state`: the current state of the guest.

use http::StatusCode;

use crate::{
    app::App,
    http::reply::{ApiError, Reply, sync},
};

/// `GET /1.0/state`.
///
/// # Errors
///
/// 500 when the state cannot be read.
pub(crate) async fn get(app: &App) -> Result<Reply, ApiError> {
    Ok(sync(app.state.state(app.family).await?))
}

/// `PUT /1.0/state`: not implemented, as in LXD's agent.
pub(crate) fn put() -> ApiError {
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not implemented")
}
