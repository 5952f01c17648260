//! `identity init`: keys and certificates for the host and for a guest.
//!
//! ```text
//! DIR/client.crt  DIR/client.key     the host's own pair, made once, for every guest: shown to their
//!                                    agents, and by `serve` to guests that ask
//! DIR/VM/agent.crt                   the guest's certificate, pinned
//! DIR/VM/guest/agent.crt agent.key   what the guest is to have in /etc/vsock-agent,
//! DIR/VM/guest/server.crt            with the host's certificate, which it pins in turn
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use serde_json::json;
use vsock_agent_client::{
    AGENT_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, private_directory, write_whole,
};

use crate::{
    args::{Format, IdentityCommand, InitArgs},
    config::Settings,
    output,
};

/// Where an agent looks for its identity in the guest.
const GUEST_DIRECTORY: &str = "/etc/vsock-agent";

/// The one DNS name of an agent's certificate: LXD's hosts ask for it.
const AGENT_NAME: &str = "unspecified";

/// The DNS name of the host's certificate. Stock agents ask for the first one that is in it, and need
/// one.
const HOST_NAME: &str = "vsock-agent-host";

/// Years certificates are good for. They are pinned, and a guest's clock may be anywhere; only
/// stock agents and hosts look at dates at all.
const NOT_BEFORE: i32 = 2000;
const NOT_AFTER: i32 = 2199;

/// `agent-cli identity`.
pub(crate) fn run(settings: &Settings, command: IdentityCommand) -> anyhow::Result<u8> {
    match command {
        IdentityCommand::Init(args) => init(settings, args),
    }
}

fn init(settings: &Settings, args: InitArgs) -> anyhow::Result<u8> {
    let directory = settings.identity_directory(&args.vm, args.dir);
    let folder = args.vm.replace('/', "_");
    if folder.is_empty() || folder.starts_with('.') {
        bail!("{:?} is no name for a virtual machine", args.vm);
    }
    let made_host = make_host_pair(&directory)?;
    let guest = make_guest_set(&directory, &folder, args.force)?;
    match args.format {
        Format::Json => output::json(&json!({
            "vm": args.vm,
            "directory": directory,
            "client_certificate": directory.join(CLIENT_CERTIFICATE),
            "client_key": directory.join(CLIENT_KEY),
            "client_pair_made": made_host,
            "agent_certificate": directory.join(&folder).join(AGENT_CERTIFICATE),
            "guest_files": guest,
            "guest_directory": GUEST_DIRECTORY,
        }))?,
        Format::Human => tell(&directory, &guest, made_host, &args.vm)?,
    }
    Ok(0)
}

fn tell(directory: &Path, guest: &Path, made_host: bool, vm: &str) -> anyhow::Result<()> {
    let word = match made_host {
        true => "made",
        false => "kept",
    };
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

/// LXD's names for what an agent needs.
const GUEST_FILES: [&str; 3] = [AGENT_CERTIFICATE, "agent.key", "server.crt"];

/// Whether a pair is there. One half of it is a mistake.
fn is_whole(certificate: &Path, key: &Path) -> anyhow::Result<bool> {
    match (certificate.exists(), key.exists()) {
        (true, true) => Ok(true),
        (false, false) => Ok(false),
        (true, false) => bail!("{} is there without its key", certificate.display()),
        (false, true) => bail!("{} is there without its certificate", key.display()),
    }
}

/// Makes the host's pair unless it is there; says whether it did. A new one would lock us out of
/// every guest that trusts the old one, so no option replaces it.
fn make_host_pair(directory: &Path) -> anyhow::Result<bool> {
    let certificate = directory.join(CLIENT_CERTIFICATE);
    let key = directory.join(CLIENT_KEY);
    if is_whole(&certificate, &key)? {
        return Ok(false);
    }
    let host = host_name();
    let pair = make(
        &format!("agent-cli on {host}"),
        HOST_NAME,
        &[
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ],
    )?;
    keep(&key, &pair.key, 0o600)?;
    keep(&certificate, &pair.certificate, 0o644)?;
    Ok(true)
}

/// Makes what the guest needs, and pins it; returns its directory.
fn make_guest_set(directory: &Path, folder: &str, force: bool) -> anyhow::Result<PathBuf> {
    let home = directory.join(folder);
    let pin = home.join(AGENT_CERTIFICATE);
    let guest = home.join("guest");
    if !force && (pin.exists() || guest.join("agent.key").exists()) {
        bail!(
            "{} has a set for this guest already: --force makes a new one, which the guest then \
             needs too",
            home.display()
        );
    }
    let client = directory.join(CLIENT_CERTIFICATE);
    let client = std::fs::read_to_string(&client)
        .with_context(|| format!("cannot read {}", client.display()))?;
    let pair = make(
        folder,
        AGENT_NAME,
        &[
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ],
    )?;
    keep(&guest.join("agent.key"), &pair.key, 0o600)?;
    keep(&guest.join(AGENT_CERTIFICATE), &pair.certificate, 0o644)?;
    keep(&guest.join("server.crt"), &client, 0o644)?;
    keep(&pin, &pair.certificate, 0o644)?;
    Ok(guest)
}

fn keep(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    path.parent()
        .map_or(Ok(()), private_directory)
        .and_then(|()| write_whole(path, text.as_bytes(), mode))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A key and its certificate, both PEM.
#[derive(Debug)]
struct Pair {
    certificate: String,
    key: String,
}

fn make(
    common_name: &str,
    dns_name: &str,
    usages: &[ExtendedKeyUsagePurpose],
) -> anyhow::Result<Pair> {
    let mut parameters = CertificateParams::new([dns_name.to_owned()])?;
    let mut subject = DistinguishedName::new();
    // X.509 has room for 64 characters (`ub-common-name`).
    let common_name: String = common_name.chars().take(64).collect();
    subject.push(DnType::OrganizationName, "vsock-agent");
    subject.push(DnType::CommonName, common_name);
    parameters.distinguished_name = subject;
    parameters.not_before = date_time_ymd(NOT_BEFORE, 1, 1);
    parameters.not_after = date_time_ymd(NOT_AFTER, 12, 31);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = usages.to_vec();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = parameters.self_signed(&key)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// Name of this computer.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "a host".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use vsock_agent_client::Identity;

    use super::*;

    fn fresh_directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("identity-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        path
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_can_be_used_and_is_private() {
        let directory = fresh_directory("usable");
        assert!(make_host_pair(&directory).unwrap());
        let guest = make_guest_set(&directory, "demo", false).unwrap();
        Identity::from_files(
            &directory.join(CLIENT_CERTIFICATE),
            &directory.join(CLIENT_KEY),
            &directory.join("demo").join(AGENT_CERTIFICATE),
        )
        .unwrap();
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join(CLIENT_KEY)), 0o600);
        assert_eq!(mode(&guest.join("agent.key")), 0o600);
        let client = std::fs::read(directory.join(CLIENT_CERTIFICATE)).unwrap();
        assert_eq!(std::fs::read(guest.join("server.crt")).unwrap(), client);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_hosts_pair_is_made_once_and_a_guests_set_only_by_force() {
        let directory = fresh_directory("once");
        assert!(make_host_pair(&directory).unwrap());
        let key = std::fs::read(directory.join(CLIENT_KEY)).unwrap();
        make_guest_set(&directory, "demo", false).unwrap();
        make_guest_set(&directory, "demo", false).unwrap_err();
        make_guest_set(&directory, "demo", true).unwrap();
        assert!(!make_host_pair(&directory).unwrap());
        assert_eq!(std::fs::read(directory.join(CLIENT_KEY)).unwrap(), key);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
