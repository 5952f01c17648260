//! `/1.0/operations`: list, get, wait, cancel, join.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use vsock_agent_protocol::{
    exec,
    operation::{Operation, OperationId},
    path,
};

use crate::{
    app::App,
    http::{
        query::parameter,
        reply::{ApiError, Reply, empty, sync},
        ws::{self, Carries},
    },
};

/// `GET /1.0/operations[?recursion=1]`: paths by status, or whole operations by status.
pub(crate) fn list(app: &App, query: &str) -> Reply {
    let whole = parameter(query, "recursion").is_some_and(|value| value != "0");
    let mut by_status: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for operation in app.operations.list() {
        let status = operation.status.to_lowercase();
        let entry = if whole {
            json!(operation)
        } else {
            json!(path::operation(operation.id))
        };
        by_status.entry(status).or_default().push(entry);
    }
    sync(by_status)
}

/// `GET /1.0/operations/{id}`.
///
/// # Errors
///
/// 404 when there is no such operation.
pub(crate) fn get(app: &App, id: OperationId) -> Result<Reply, ApiError> {
    Ok(sync(app.operations.get(id)?))
}

/// `GET /1.0/operations/{id}/wait[?timeout=SECONDS]`. Without a timeout, or with −1, there is no limit.
///
/// # Errors
///
/// 404 when there is no such operation, 400 for an invalid timeout, 504 after the timeout. For a failed
/// operation LXD replies with an error; this replies with the operation and its `err`.
pub(crate) async fn wait(app: &App, id: OperationId, query: &str) -> Result<Reply, ApiError> {
    let limit = match parameter(query, "timeout").as_deref() {
        None | Some("" | "-1") => None,
        Some(text) => {
            let seconds = text.parse().map_err(|_| {
                ApiError::bad_request(format!("{text:?} is not a number of seconds"))
            })?;
            Some(Duration::from_secs(seconds))
        }
    };
    let operation: Operation = app.operations.wait(id, limit).await?;
    if !operation.is_final() {
        let status = http::StatusCode::GATEWAY_TIMEOUT;
        return Err(ApiError::new(status, "the operation is still running"));
    }
    Ok(sync(operation))
}

/// `DELETE /1.0/operations/{id}`: cancels the operation. Does not wait for its end.
///
/// # Errors
///
/// 404 when there is no such operation, 400 when it has ended.
pub(crate) fn delete(app: &App, id: OperationId) -> Result<Reply, ApiError> {
    app.operations.cancel(id)?;
    Ok(empty())
}

/// `GET /1.0/operations/{id}/websocket?secret=…`: connects one websocket of the operation.
///
/// # Errors
///
/// 404 when there is no such operation, 403 for a wrong or used secret, 400 for a bad handshake or
/// an operation that has ended. A refused handshake does not consume the secret.
pub(crate) fn websocket(
    app: &Arc<App>,
    id: OperationId,
    mut request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let secret = parameter(request.uri().query().unwrap_or_default(), "secret");
    let (reply, upgrading) = ws::accept(&mut request)?;
    let ticket = app.operations.join(id, &secret.unwrap_or_default())?;
    let carries = match ticket.name.as_str() {
        exec::STDIN => Carries::Bytes,
        _ => Carries::Words,
    };
    app.shutdown.spawn(async move {
        if let Some(socket) = upgrading.open(carries).await {
            ticket.hand_over(socket);
        }
    });
    Ok(reply)
}
