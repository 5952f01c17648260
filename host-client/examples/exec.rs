//! Runs `uname -a` in a guest: `cargo run --example exec -- vsock:3 ~/.config/agent-cli/identity vm`
//!
//! The directory is one in which `agent-cli identity init vm` made an identity. Without one the
//! connection is plain, for an agent that was started with `--plain`.

use std::{error::Error, io::Write, path::Path};

use vsock_agent_client::{Client, Endpoint, Identity, Security};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let endpoint: Endpoint = arguments.next().ok_or("an endpoint is needed")?.parse()?;
    let security = match (arguments.next(), arguments.next()) {
        (None, _) => Security::Plain,
        (Some(directory), Some(vm)) => Security::Tls(Identity::load(Path::new(&directory), &vm)?),
        (Some(_), None) => return Err("the name of the virtual machine is needed".into()),
    };

    let client = Client::new(endpoint, security);
    let output = client.exec("uname", ["-a"]).output().await?;

    std::io::stdout().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("uname ended with {}", output.status.code).into())
    }
}
