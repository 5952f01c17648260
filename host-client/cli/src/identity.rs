//! `identity init`: creates keys and certificates for the host and for a guest.

use anyhow::anyhow;
use serde_json::json;
use vsock_agent_client::{GUEST_FILES, Identity, IdentityError, IdentityFiles};

use crate::{args::IdentityCommand, config::Settings, output};

/// The agent's identity directory in the guest.
const GUEST_DIRECTORY: &str = "/etc/vsock-agent";

/// `agent-cli identity`.
pub(crate) fn run(settings: &Settings, command: IdentityCommand) -> anyhow::Result<u8> {
    let IdentityCommand::Init(args) = command;
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
    let guest = &made.guest_directory;
    if args.format.is_json() {
        output::json(&json!({
            "vm": args.vm,
            "directory": directory,
            "client_certificate": files.certificate,
            "client_key": files.key,
            "client_pair_made": made.made_host_pair,
            "agent_certificate": files.agent,
            "guest_files": guest,
            "guest_directory": GUEST_DIRECTORY,
        }))?;
        return Ok(0);
    }
    let verb = if made.made_host_pair { "made" } else { "kept" };
    let mut lines = vec![
        format!("{verb} the host's key pair in {}", directory.display()),
        format!("made the guest's set in {}", guest.display()),
        format!(
            "\nCopy these three into {GUEST_DIRECTORY} of the guest, agent.key readable by root only,"
        ),
        "and start the agent there:".to_owned(),
    ];
    lines.extend(GUEST_FILES.map(|name| format!("  {}", guest.join(name).display())));
    lines.push(format!("\nThen: agent-cli info {}", args.vm));
    output::lines(lines)?;
    Ok(0)
}
