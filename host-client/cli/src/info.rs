//! `info`: an agent's version, system and API extensions.

use serde_json::json;
use vsock_agent_client::protocol::server_info::ServerInfo;

use crate::{args::InfoArgs, config::Settings, output};

/// `agent-cli info`.
pub(crate) async fn run(settings: &Settings, args: InfoArgs) -> anyhow::Result<u8> {
    let client = settings.caller(&args.vm).await?;
    let info = client.server_info().await?;
    let endpoint = client.endpoint().to_string();
    if args.format.is_json() {
        output::json(&json!({ "vm": args.vm, "endpoint": endpoint, "agent": info }))?;
    } else {
        output::lines(output::table(&rows(&endpoint, &info)))?;
    }
    Ok(0)
}

fn rows(endpoint: &str, info: &ServerInfo) -> Vec<Vec<String>> {
    let environment = &info.environment;
    let system = format!(
        "{} {} {}",
        environment.kernel, environment.kernel_version, environment.kernel_architecture
    );
    let agent = format!("{} {}", environment.server, environment.server_version);
    [
        ("endpoint", endpoint),
        ("guest", &environment.server_name),
        ("system", &system),
        ("agent", &agent),
        ("process", &environment.server_pid.to_string()),
        ("api", &info.api_version),
        ("extensions", &info.api_extensions.join(" ")),
    ]
    .into_iter()
    .map(|(name, text)| vec![name.to_owned(), output::escape(text.as_bytes())])
    .collect()
}
