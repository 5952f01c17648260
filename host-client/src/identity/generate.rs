//! Generates keys and certificates for this host and for a guest.

use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};

use nix::unistd::gethostname;
use vsock_agent_files::write_whole;

use super::{AGENT_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, guest_directory};
use crate::tls::{Identity, IdentityError};

/// The files for `/etc/vsock-agent` in a guest: LXD's names for its agent's certificate, its key, and
/// the certificate of the host.
pub const GUEST_FILES: [&str; 3] = [AGENT_CERTIFICATE, AGENT_KEY, HOST_CERTIFICATE];

const AGENT_KEY: &str = "agent.key";
const HOST_CERTIFICATE: &str = "server.crt";

/// The only DNS name in an agent's certificate. LXD's hosts require it.
const AGENT_NAME: &str = "unspecified";

/// The DNS name in the host's certificate. LXD's agent connects with the first one, and requires one.
const HOST_NAME: &str = "vsock-agent-host";

/// Validity of certificates, in years. They are pinned, and a guest's clock may be wrong; only LXD's
/// agents and hosts check dates.
const NOT_BEFORE: i32 = 2000;
const NOT_AFTER: i32 = 2199;

/// A new identity.
#[derive(Debug)]
#[non_exhaustive]
pub struct GeneratedIdentity {
    /// This host's side of it.
    pub identity: Identity,
    /// Whether the host's own pair is new too.
    pub made_host_pair: bool,
    /// The directory with [`GUEST_FILES`] for the guest.
    pub guest_directory: PathBuf,
}

impl Identity {
    /// Generates an identity for `guest` in a directory, and this host's own pair if the directory has
    /// none, as `agent-cli identity init` does. Copy
    /// [`guest_directory`](GeneratedIdentity::guest_directory) into the guest;
    /// [`load`](Self::load) reads this host's side. Blocks on the files.
    ///
    /// Keys are ECDSA P-256, the files of keys have mode 0600 and new directories 0700.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Exists`] if the guest has one, [`IdentityError::Name`] for an invalid name, and
    /// the errors of reading and writing.
    pub fn generate(directory: &Path, guest: &str) -> Result<GeneratedIdentity, IdentityError> {
        let home = guest_directory(directory, guest)?;
        let pin = home.join(AGENT_CERTIFICATE);
        if pin.exists() || home.join("guest").join(AGENT_KEY).exists() {
            return Err(IdentityError::Exists { directory: home });
        }
        Self::replace(directory, guest)
    }

    /// The same, replacing an existing identity; copy the new one into the guest then. This host's own
    /// pair is never replaced, because all other guests pin it.
    ///
    /// # Errors
    ///
    /// [`IdentityError`], all but [`Exists`](IdentityError::Exists).
    pub fn replace(directory: &Path, guest: &str) -> Result<GeneratedIdentity, IdentityError> {
        let home = guest_directory(directory, guest)?;
        let made_host_pair = make_host_pair(directory)?;
        Ok(GeneratedIdentity {
            guest_directory: make_guest_set(directory, &home, guest)?,
            identity: Self::load(directory, guest)?,
            made_host_pair,
        })
    }
}

/// Whether a pair exists. Half of one is an error.
fn is_whole(certificate: &Path, key: &Path) -> Result<bool, IdentityError> {
    let half = |there: &Path, missing: &Path| IdentityError::Half {
        there: there.to_owned(),
        missing: missing.to_owned(),
    };
    match (certificate.exists(), key.exists()) {
        (true, true) => Ok(true),
        (false, false) => Ok(false),
        (true, false) => Err(half(certificate, key)),
        (false, true) => Err(half(key, certificate)),
    }
}

/// Generates the host's pair unless it exists. Returns whether it is new.
fn make_host_pair(directory: &Path) -> Result<bool, IdentityError> {
    let certificate = directory.join(CLIENT_CERTIFICATE);
    let key = directory.join(CLIENT_KEY);
    if is_whole(&certificate, &key)? {
        return Ok(false);
    }
    let host = gethostname().unwrap_or_else(|_| "a host".into());
    let pair = make(&format!("agent-cli on {}", host.display()), HOST_NAME)?;
    keep(&key, &pair.key, 0o600)?;
    keep(&certificate, &pair.certificate, 0o644)?;
    Ok(true)
}

/// Generates the guest's files, and pins its certificate. Returns their directory.
fn make_guest_set(directory: &Path, home: &Path, name: &str) -> Result<PathBuf, IdentityError> {
    let guest = home.join("guest");
    let path = directory.join(CLIENT_CERTIFICATE);
    let client = std::fs::read_to_string(&path);
    let client = client.map_err(|source| IdentityError::Read { path, source })?;
    let pair = make(name, AGENT_NAME)?;
    keep(&guest.join(AGENT_KEY), &pair.key, 0o600)?;
    keep(&guest.join(AGENT_CERTIFICATE), &pair.certificate, 0o644)?;
    keep(&guest.join(HOST_CERTIFICATE), &client, 0o644)?;
    keep(&home.join(AGENT_CERTIFICATE), &pair.certificate, 0o644)?;
    Ok(guest)
}

fn keep(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    write_whole(path, text.as_bytes(), mode).map_err(|source| IdentityError::Write {
        path: path.to_owned(),
        source,
    })
}

/// A key and its certificate, both PEM.
#[derive(Debug)]
struct Pair {
    certificate: String,
    key: String,
}

/// Generates a pair for clients and servers.
fn make(common_name: &str, dns_name: &str) -> Result<Pair, IdentityError> {
    let pair = || {
        let mut parameters = CertificateParams::new([dns_name.to_owned()])?;
        let mut subject = DistinguishedName::new();
        // A common name has at most 64 characters (`ub-common-name` in RFC 5280).
        let common_name: String = common_name.chars().take(64).collect();
        subject.push(DnType::OrganizationName, "vsock-agent");
        subject.push(DnType::CommonName, common_name);
        parameters.distinguished_name = subject;
        parameters.not_before = date_time_ymd(NOT_BEFORE, 1, 1);
        parameters.not_after = date_time_ymd(NOT_AFTER, 12, 31);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = parameters.self_signed(&key)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    };
    pair().map_err(|error: rcgen::Error| IdentityError::Make {
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
    fn a_generated_identity_is_private_and_can_be_loaded() {
        let directory = fresh_directory("usable");
        let made = Identity::generate(&directory, "demo").unwrap();
        assert!(made.made_host_pair);
        assert_eq!(made.identity, Identity::load(&directory, "demo").unwrap());
        Identity::load(&directory, "other").unwrap_err();
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join(CLIENT_KEY)), 0o600);
        let guest = made.guest_directory;
        assert_eq!(guest, directory.join("demo/guest"));
        assert_eq!(mode(&guest.join("agent.key")), 0o600);
        let client = std::fs::read(directory.join(CLIENT_CERTIFICATE)).unwrap();
        assert_eq!(std::fs::read(guest.join("server.crt")).unwrap(), client);
        // One certificate for all guests that have none of their own.
        std::fs::copy(guest.join("agent.crt"), directory.join("agent.crt")).unwrap();
        assert_eq!(
            made.identity,
            Identity::load(&directory, "unix:/a/b").unwrap()
        );
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_host_pair_is_never_replaced_and_a_guest_pair_only_on_request() {
        let directory = fresh_directory("once");
        let first = Identity::generate(&directory, "demo").unwrap();
        let key = std::fs::read(directory.join(CLIENT_KEY)).unwrap();
        let again = Identity::generate(&directory, "demo").unwrap_err();
        assert!(matches!(again, IdentityError::Exists { .. }));
        let second = Identity::replace(&directory, "demo").unwrap();
        assert!(!second.made_host_pair);
        assert_ne!(first.identity, second.identity);
        assert_eq!(std::fs::read(directory.join(CLIENT_KEY)).unwrap(), key);
        std::fs::remove_file(directory.join(CLIENT_KEY)).unwrap();
        let half = Identity::replace(&directory, "demo").unwrap_err();
        assert!(matches!(half, IdentityError::Half { .. }));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
