//! `identity init`: keys and certificates for the host and for a guest.

use std::path::Path;

use anyhow::anyhow;
use serde_json::json;
use vsock_agent_client::{GUEST_FILES, Identity, IdentityError, IdentityFiles};

use crate::{
    args::{Format, IdentityCommand, InitArgs},
    config::Settings,
    output,
};

/// Where an agent looks for its identity in the guest.
const GUEST_DIRECTORY: &str = "/etc/vsock-agent";

/// `agent-cli identity`.
pub(crate) fn run(settings: &Settings, command: IdentityCommand) -> anyhow::Result<u8> {
    match command {
        IdentityCommand::Init(args) => init(settings, args),
    }
}

fn init(settings: &Settings, args: InitArgs) -> anyhow::Result<u8> {
    let directory = settings.identity_directory(&args.vm, args.dir);
    let made = if args.force {
        Identity::replace(&directory, &args.vm)
    } else {
        Identity::generate(&directory, &args.vm)
    };
    let made = made.map_err(|error| match error {
        IdentityError::Exists { .. } => {
            anyhow!("{error}: --force makes a new one, which the guest then needs too")
        }
        other => other.into(),
    })?;
    let files = IdentityFiles::find(&directory, &args.vm)?;
    match args.format.value() {
        Format::Json => output::json(&json!({
            "vm": args.vm,
            "directory": directory,
            "client_certificate": files.certificate,
            "client_key": files.key,
            "client_pair_made": made.made_host_pair,
            "agent_certificate": files.agent,
            "guest_files": made.guest_directory,
            "guest_directory": GUEST_DIRECTORY,
        }))?,
        Format::Human => tell(
            &directory,
            &made.guest_directory,
            made.made_host_pair,
            &args.vm,
        )?,
    }
    Ok(0)
}

fn tell(directory: &Path, guest: &Path, made_host: bool, vm: &str) -> anyhow::Result<()> {
    let word = if made_host { "made" } else { "kept" };
    output::line(&format!(
        "{word} the host's key pair in {}",
        directory.display()
    ))?;
    output::line(&format!("made the guest's set in {}", guest.display()))?;
    output::line(&format!(
        "\nCopy these three into {GUEST_DIRECTORY} of the guest, agent.key readable by root \
         only,\nand start the agent there:"
    ))?;
    for name in GUEST_FILES {
        output::line(&format!("  {}", guest.join(name).display()))?;
    }
    output::line(&format!("\nThen: agent-cli info {vm}"))?;
    Ok(())
}
