//! `GET /1.0/sftp`: from HTTP to SFTP on the same connection.

use std::sync::Arc;

use http::{Request, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{select, time::timeout};

use crate::{
    app::App,
    defaults,
    reply::{ApiError, Reply, switching_protocols},
    sftp,
};

/// The protocol's name in `Upgrade`.
const PROTOCOL: &str = "sftp";

/// Switches the connection to SFTP. Bytes that came with the request are not lost: hyper's
/// upgraded stream reads them first.
///
/// # Errors
///
/// 400 without `Upgrade: sftp`, 503 when there are too many sessions.
pub(crate) fn get(app: &Arc<App>, mut request: Request<Incoming>) -> Result<Reply, ApiError> {
    if request
        .headers()
        .get(header::UPGRADE)
        .is_none_or(|upgrade| upgrade != PROTOCOL)
    {
        return Err(ApiError::bad_request(
            "Missing or invalid upgrade header: it must be sftp",
        ));
    }
    let permit = Arc::clone(&app.sftp_sessions)
        .try_acquire_owned()
        .map_err(|_| {
            let limit = defaults::MAX_SFTP_SESSIONS;
            ApiError::busy(format!("too many SFTP sessions: {limit} are open"))
        })?;
    let upgrade = hyper::upgrade::on(&mut request);
    let stop = app.shutdown.child_token();
    app.shutdown.spawn(async move {
        let _permit = permit;
        let Ok(Ok(upgraded)) = timeout(defaults::UPGRADE_TIMEOUT, upgrade).await else {
            return;
        };
        tracing::info!("an SFTP session starts");
        let ended = select! {
            ended = sftp::serve(TokioIo::new(upgraded)) => ended,
            () = stop.cancelled() => Ok(()),
        };
        tracing::info!(?ended, "an SFTP session ended");
    });
    Ok(switching_protocols(PROTOCOL))
}
