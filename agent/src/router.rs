//! Method and path to handler. No logic.

use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use vsock_agent_protocol::{operation::OperationId, path};

use crate::{
    api::{events, exec, operations, server_info, sftp},
    app::App,
    reply::{ApiError, Reply},
};

/// Answers one request.
pub(crate) async fn route(app: Arc<App>, request: Request<Incoming>) -> Reply {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let reply = dispatch(&app, &method, &path, request)
        .await
        .unwrap_or_else(ApiError::into_reply);
    tracing::debug!(%method, path, status = reply.status().as_u16(), "request");
    reply
}

async fn dispatch(
    app: &Arc<App>,
    method: &Method,
    path: &str,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    match (path, method) {
        (path::ROOT, _) => Ok(server_info::versions()),
        (path::SERVER, &Method::GET) => Ok(server_info::get()),
        (path::EXEC, &Method::POST) => exec::post(app, request).await,
        (path::EVENTS, &Method::GET) => events::get(app, request),
        (path::SFTP, &Method::GET) => sftp::get(app, request),
        (path::OPERATIONS, &Method::GET) => Ok(operations::list(app, &query)),
        (path::SERVER | path::EXEC | path::EVENTS | path::SFTP | path::OPERATIONS, _) => {
            Err(wrong_method(method, path))
        }
        _ => {
            let (id, verb) = operation(path).ok_or_else(|| no_such_path(path))?;
            match (verb, method) {
                ("", &Method::GET) => operations::get(app, id),
                ("", &Method::DELETE) => operations::delete(app, id),
                ("wait", &Method::GET) => operations::wait(app, id, &query).await,
                ("websocket", &Method::GET) => operations::websocket(app, id, request),
                ("" | "wait" | "websocket", _) => Err(wrong_method(method, path)),
                _ => Err(no_such_path(path)),
            }
        }
    }
}

/// The operation and the verb of `/1.0/operations/{id}[/{verb}]`.
fn operation(path: &str) -> Option<(OperationId, &str)> {
    let rest = path.strip_prefix(path::OPERATIONS)?.strip_prefix('/')?;
    let (id, verb) = rest.split_once('/').unwrap_or((rest, ""));
    Some((id.parse().ok()?, verb))
}

fn no_such_path(path: &str) -> ApiError {
    ApiError::not_found(format!("there is nothing at {path}"))
}

fn wrong_method(method: &Method, path: &str) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{path} does not know {method}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_found_by_a_whole_uuid_only() {
        let id = "01234567-89ab-4cde-8f01-23456789abcd";
        let path = format!("/1.0/operations/{id}/wait");
        let found = operation(&path).unwrap();
        assert_eq!((found.0.to_string().as_str(), found.1), (id, "wait"));
        assert_eq!(operation("/1.0/operations/1"), None);
        assert_eq!(operation(&format!("/1.0/operationsx/{id}")), None);
    }
}
