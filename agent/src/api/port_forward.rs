//! `/1.0/port-forward`: upgrades the connection, or a stream of it, to a TCP connection to a port of the guest.

use std::{
    future::{self, Future},
    sync::Arc,
};

use http::{Request, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{select, time::timeout};
use vsock_agent_protocol::port_forward::{PROTOCOL, PortForward};

use crate::{
    app::App,
    defaults,
    http::{
        client,
        connection::{self, Transport},
        query::parameter,
        reply::{ApiError, Reply, read_json, switching_protocols},
    },
    port_forward,
};

/// Connects to the port in the body.
///
/// # Errors
///
/// 400 without `Upgrade: tcp` or for an invalid request, 500 when the connection fails, 503 when there are
/// too many such connections.
pub(crate) async fn post(
    app: &Arc<App>,
    mut request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let to = async { read_json(body).await };
    connect(app, &Request::from_parts(parts, ()), upgrade, to).await
}

/// Extended CONNECT: connects to the `address` and `port` in the query.
///
/// # Errors
///
/// As [`post`].
pub(crate) async fn get(
    app: &Arc<App>,
    mut request: Request<Incoming>,
    query: &str,
) -> Result<Reply, ApiError> {
    let port = parameter(query, "port").and_then(|port| port.parse().ok());
    let to = port.map(|port| {
        let mut to = PortForward::new(port);
        if let Some(address) = parameter(query, "address") {
            to.address = address;
        }
        to
    });
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let to = async { to.ok_or_else(|| ApiError::bad_request("the query has no usable port")) };
    connect(app, &Request::from_parts(parts, ()), upgrade, to).await
}

/// Connects to the port before the upgrade, so that a failure is an HTTP error.
async fn connect(
    app: &Arc<App>,
    request: &Request<()>,
    upgrade: OnUpgrade,
    to: impl Future<Output = Result<PortForward, ApiError>>,
) -> Result<Reply, ApiError> {
    let protocol = request.headers().get(header::UPGRADE);
    if protocol.is_none_or(|protocol| protocol != PROTOCOL) {
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
    let client = client::of(request);
    let to = to.await?;
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
        tracing::info!(address = to.address, port = to.port, "a port is forwarded");
        let copy = async {
            match upgraded.downcast::<TokioIo<Transport>>() {
                Ok(parts) => {
                    let stream = parts.io.into_inner();
                    let watch = connection::socket(&stream).watch();
                    port_forward::copy(stream, &parts.read_buf, guest, watch.closed()).await
                }
                // Of a stream of HTTP/2, reading tells.
                Err(upgraded) => {
                    let stream = TokioIo::new(upgraded);
                    port_forward::copy(stream, &[], guest, future::pending()).await
                }
            }
        };
        let ended = select! {
            ended = copy => ended,
            () = stop.cancelled() => return,
        };
        tracing::info!(port = to.port, ?ended, "a forwarded connection ended");
    });
    Ok(switching_protocols(PROTOCOL))
}
