//! `GET /1.0/metrics` for LXD's and Incus's hosts, and `GET /metrics` for Prometheus.

use vsock_agent_protocol::{metrics::LxdMetrics, version::Family};

use crate::{
    app::App,
    http::reply::{ApiError, Reply, sync, text},
    system::state::CONTENT_TYPE,
};

/// `GET /1.0/metrics`, in the family's shape.
///
/// # Errors
///
/// 500 when the guest cannot be looked at.
pub(crate) async fn get(app: &App) -> Result<Reply, ApiError> {
    let metrics = app.guest.metrics(app.family).await?;
    Ok(match app.family {
        Family::Lxd => sync(LxdMetrics::from(metrics)),
        Family::Incus => sync(metrics),
    })
}

/// `GET /metrics`.
///
/// # Errors
///
/// 500 when the guest cannot be looked at.
pub(crate) async fn get_text(app: &App) -> Result<Reply, ApiError> {
    Ok(text(CONTENT_TYPE, app.guest.text(app.numbers()).await?))
}
