//! `POST /1.0/port-forward`: upgrades the connection to a TCP connection to a port of the guest.

use std::sync::Arc;

use http::{Request, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{select, time::timeout};
use vsock_agent_protocol::port_forward::{PROTOCOL, PortForward};

use crate::{
    app::App,
    defaults,
    http::{
        client,
        connection::{self, Transport},
        reply::{ApiError, Reply, read_json, switching_protocols},
    },
    port_forward,
};

/// Connects to the port before the upgrade, so that a failure is an HTTP error.
///
/// # Errors
///
/// 400 without `Upgrade: tcp` or for an invalid request, 500 when the connection fails, 503 when there are
/// too many such connections.
pub(crate) async fn post(
    app: &Arc<App>,
    mut request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let upgrade = request.headers().get(header::UPGRADE);
    if upgrade.is_none_or(|upgrade| upgrade != PROTOCOL) {
        return Err(ApiError::bad_request(
            "Missing or invalid upgrade header: it must be tcp",
        ));
    }
    let permit = Arc::clone(&app.port_forwards)
        .try_acquire_owned()
        .map_err(|_| {
            let limit = defaults::MAX_PORT_FORWARDS;
            ApiError::busy(format!("too many forwarded connections: {limit} are open"))
        })?;
    let client = client::of(&request);
    let upgrade = hyper::upgrade::on(&mut request);
    let to: PortForward = read_json(request.into_body()).await?;
    let guest = port_forward::dial(&to).await?;
    let stop = match &client {
        Some(client) => client.stop.clone(),
        None => app.shutdown.child_token(),
    };
    app.shutdown.spawn(async move {
        // Holds the client, so that it can be closed when it is no longer admitted.
        let _kept = (permit, client);
        let Ok(Ok(upgraded)) = timeout(defaults::UPGRADE_TIMEOUT, upgrade).await else {
            return;
        };
        // Connections have no other type.
        let Ok(parts) = upgraded.downcast::<TokioIo<Transport>>() else {
            return;
        };
        tracing::info!(address = to.address, port = to.port, "a port is forwarded");
        let stream = parts.io.into_inner();
        let watch = connection::socket(&stream).watch();
        let ended = select! {
            ended = port_forward::copy(stream, &parts.read_buf, guest, watch.closed()) => ended,
            () = stop.cancelled() => return,
        };
        tracing::info!(port = to.port, ?ended, "a forwarded connection ended");
    });
    Ok(switching_protocols(PROTOCOL))
}
