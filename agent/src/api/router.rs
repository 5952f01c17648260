//! Maps method and path to a handler.

use std::sync::Arc;

use http::{Method, Request, Version};
use hyper::body::Incoming;
use vsock_agent_protocol::{operation::OperationId, path};

use super::{events, exec, metrics, operations, port_forward, server_info, sftp, state};
use crate::{
    app::App,
    config::Feature,
    http::reply::{ApiError, Reply},
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

/// A resource of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Root,
    Server,
    Exec,
    ExecStream,
    Events,
    Sftp,
    PortForward,
    State,
    Metrics,
    MetricsText,
    Operations,
    Operation(OperationId),
    Wait(OperationId),
    Websocket(OperationId),
}

impl Resource {
    /// The resource at exactly this path; a slash at the end does not match.
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            path::ROOT => Self::Root,
            path::SERVER => Self::Server,
            path::EXEC => Self::Exec,
            path::EXEC_STREAM => Self::ExecStream,
            path::EVENTS => Self::Events,
            path::SFTP => Self::Sftp,
            path::PORT_FORWARD => Self::PortForward,
            path::STATE => Self::State,
            path::METRICS => Self::Metrics,
            path::METRICS_TEXT => Self::MetricsText,
            path::OPERATIONS => Self::Operations,
            _ => {
                let rest = path.strip_prefix(path::OPERATIONS)?.strip_prefix('/')?;
                let (id, verb) = match rest.split_once('/') {
                    Some((id, verb)) => (id, Some(verb)),
                    None => (rest, None),
                };
                let id = id.parse().ok()?;
                match verb {
                    None => Self::Operation(id),
                    Some("wait") => Self::Wait(id),
                    Some("websocket") => Self::Websocket(id),
                    Some(_) => return None,
                }
            }
        })
    }

    /// The feature that must be enabled for it.
    const fn feature(self) -> Option<Feature> {
        match self {
            Self::Exec | Self::ExecStream => Some(Feature::Exec),
            Self::Sftp => Some(Feature::Files),
            Self::PortForward => Some(Feature::PortForward),
            Self::State => Some(Feature::State),
            Self::Metrics | Self::MetricsText => Some(Feature::Metrics),
            _ => None,
        }
    }

    /// The allowed methods, for the header `Allow`. The root allows all.
    const fn methods(self) -> &'static str {
        match self {
            Self::Root => "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE",
            Self::Server | Self::State => "GET, HEAD, PUT",
            Self::Events => "GET, HEAD, POST",
            Self::Exec | Self::ExecStream | Self::PortForward => "POST",
            Self::Operation(_) => "GET, HEAD, DELETE",
            Self::Metrics | Self::MetricsText | Self::Operations | Self::Wait(_) => "GET, HEAD",
            // No HEAD: what follows the reply is not a body.
            Self::Sftp | Self::Websocket(_) => "GET",
        }
    }
}

async fn dispatch(
    app: &Arc<App>,
    method: &Method,
    path: &str,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let resource = Resource::at(path)
        .ok_or_else(|| ApiError::not_found(format!("there is nothing at {path}")))?;
    if let Some(feature) = resource.feature()
        && !app.policy().features.has(feature)
    {
        let text = format!("{} is switched off in this guest", feature.name());
        return Err(ApiError::forbidden(text));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = match *method {
        // The connection omits the body.
        Method::HEAD if resource.methods().contains("HEAD") => &Method::GET,
        _ => method,
    };
    match (resource, method) {
        (Resource::Root, _) => Ok(server_info::versions()),
        (Resource::Server, &Method::GET) => Ok(server_info::get(app)),
        (Resource::Server, &Method::PUT) => server_info::put(app, request).await,
        (Resource::Exec, &Method::POST) => exec::post(app, request).await,
        (Resource::ExecStream, &Method::POST) => exec::post_stream(app, request).await,
        (Resource::Events, &Method::GET) => events::get(app, request),
        (Resource::Events, &Method::POST) => events::post(app, request).await,
        (Resource::Sftp, &Method::GET) => sftp::get(app, request, &query).await,
        (Resource::PortForward, &Method::POST) => port_forward::post(app, request).await,
        (Resource::PortForward, &Method::GET) if request.version() == Version::HTTP_2 => {
            port_forward::get(app, request, &query).await
        }
        (Resource::State, &Method::GET) => state::get(app).await,
        (Resource::State, &Method::PUT) => Err(state::put()),
        (Resource::Metrics, &Method::GET) => metrics::get(app).await,
        (Resource::MetricsText, &Method::GET) => metrics::get_text(app).await,
        (Resource::Operations, &Method::GET) => Ok(operations::list(app, &query)),
        (Resource::Operation(id), &Method::GET) => operations::get(app, id),
        (Resource::Operation(id), &Method::DELETE) => operations::delete(app, id),
        (Resource::Wait(id), &Method::GET) => operations::wait(app, id, &query).await,
        (Resource::Websocket(id), &Method::GET) => operations::websocket(app, id, request),
        (resource, _) => Err(ApiError::wrong_method(
            format!("{path} does not know {method}"),
            resource.methods(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_found_by_a_whole_uuid_only() {
        let id = "01234567-89ab-4cde-8f01-23456789abcd";
        let at = |path: &str| Resource::at(path);
        let found = at(&format!("/1.0/operations/{id}/wait"));
        assert_eq!(found, Some(Resource::Wait(id.parse().unwrap())));
        assert_eq!(at("/1.0/operations/1"), None);
        assert_eq!(at(&format!("/1.0/operationsx/{id}")), None);
        assert_eq!(at(&format!("/1.0/operations/{id}/other")), None);
    }

    #[test]
    fn another_slash_leads_nowhere() {
        let id = "01234567-89ab-4cde-8f01-23456789abcd";
        let operation = format!("/1.0/operations/{id}");
        let wait = format!("{operation}/wait");
        for path in ["/1.0", "/metrics", "/1.0/operations", &operation, &wait] {
            assert!(Resource::at(path).is_some(), "{path}");
            assert_eq!(Resource::at(&format!("{path}/")), None, "{path}/");
            assert_eq!(Resource::at(&format!("/{path}")), None, "/{path}");
        }
    }
}
