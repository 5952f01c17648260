//! `GET /` and `/1.0`: information about the agent, and the announcement of the host's address.

use data_encoding::HEXLOWER;
use http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use nix::sys::utsname::uname;
use ring::digest::{SHA256, digest};
use vsock_agent_protocol::{
    host::HostConnection,
    path,
    server_info::{Environment, ServerInfo},
    version::{self, Family},
};

use crate::{
    app::App,
    http::reply::{ApiError, Reply, empty, read_json, sync},
    lxd_host::status_port::Status,
};

/// `GET /`: the versions of the API.
pub(crate) fn versions() -> Reply {
    sync([path::SERVER])
}

/// `GET /1.0`, with an `ETag` of the reply.
pub(crate) fn get(app: &App) -> Reply {
    let info = info(app.family);
    let tag =
        serde_json::to_vec(&info).map(|text| HEXLOWER.encode(digest(&SHA256, &text).as_ref()));
    let mut reply = sync(info);
    if let Some(tag) = tag.ok().and_then(|tag| quoted(&tag)) {
        reply.headers_mut().insert(header::ETAG, tag);
    }
    reply
}

fn quoted(tag: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"{tag}\"")).ok()
}

/// `PUT /1.0`: the host announces its address.
///
/// # Errors
///
/// 400 for an invalid address or certificate.
pub(crate) async fn put(app: &App, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let connection: HostConnection = read_json(request.into_body()).await?;
    app.host.set_connection(connection)?;
    app.status_ports.write(Status::Connected);
    Ok(empty())
}

fn info(family: Family) -> ServerInfo {
    let mut info = ServerInfo::default();
    info.api_extensions = version::API_EXTENSIONS
        .iter()
        .map(ToString::to_string)
        .collect();
    info.api_status = "stable".to_owned();
    info.api_version = version::API_VERSION.to_owned();
    info.auth = "trusted".to_owned();
    info.auth_methods = vec!["tls".to_owned()];
    info.environment = environment(family);
    info.boot_id = boot_id();
    info
}

fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim_end().to_owned())
}

fn environment(family: Family) -> Environment {
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let mut environment = Environment::default();
    environment.server = family.server_name().to_owned();
    environment.server_pid = std::process::id().into();
    environment.server_version = env!("CARGO_PKG_VERSION").to_owned();
    if let Ok(system) = uname() {
        environment.server_name = text(system.nodename());
        environment.kernel = text(system.sysname());
        environment.kernel_architecture = text(system.machine());
        environment.kernel_version = text(system.release());
    }
    environment
}
