//! `GET /1.0/metrics` for LXD's and Incus's hosts, and `GET /metrics` for Prometheus.

use vsock_agent_protocol::{metrics::LxdMetrics, version::Family};

use crate::{
    app::App,
    http::reply::{ApiError, Reply, sync, text},
    system::state::CONTENT_TYPE,
};

/// `GET /1.0/metrics`, in the format of the host's flavour.
///
/// # Errors
///
/// 500 when the metrics cannot be read.
pub(crate) async fn get(app: &App) -> Result<Reply, ApiError> {
    let metrics = app.state.metrics(app.family).await?;
    Ok(match app.family {
        Family::Lxd => sync(LxdMetrics::from(metrics)),
        Family::Incus => sync(metrics),
    })
}

/// `GET /metrics`.
///
/// # Errors
///
/// 500 when the metrics cannot be read.
pub(crate) async fn get_text(app: &App) -> Result<Reply, ApiError> {
    Ok(text(CONTENT_TYPE, app.state.text(app.numbers()).await?))
}
