//! `GET /` and `GET /1.0`: what this is.

use nix::{sys::utsname::uname, unistd::gethostname};
use vsock_agent_protocol::{
    path,
    server_info::{Environment, ServerInfo},
    version,
};

use crate::reply::{Reply, sync};

/// `GET /`: the versions of the API.
pub(crate) fn versions() -> Reply {
    sync([path::SERVER])
}

/// `GET /1.0`.
pub(crate) fn get() -> Reply {
    sync(ServerInfo {
        api_extensions: version::API_EXTENSIONS
            .iter()
            .map(ToString::to_string)
            .collect(),
        api_status: "stable".to_owned(),
        api_version: version::API_VERSION.to_owned(),
        auth: "trusted".to_owned(),
        public: false,
        auth_methods: vec!["tls".to_owned()],
        config: serde_json::Value::Null,
        environment: environment(),
    })
}

fn environment() -> Environment {
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let mut environment = Environment {
        server: version::LXD_SERVER_NAME.to_owned(),
        server_name: gethostname().map(|name| text(&name)).unwrap_or_default(),
        server_pid: std::process::id().into(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Environment::default()
    };
    if let Ok(system) = uname() {
        environment.kernel = text(system.sysname());
        environment.kernel_architecture = text(system.machine());
        environment.kernel_version = text(system.release());
    }
    environment
}
