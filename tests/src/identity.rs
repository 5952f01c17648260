//! Certificates for both ends, of any kind a test wants.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SignatureAlgorithm, date_time_ymd,
};

use vsock_agent_client::IdentityPem;

use crate::base64;

/// A key of P-384 by SEC 1 (RFC 5915): what is before its 48 bytes, between them and the public key,
/// and the length of the public key with its tag.
const SEC1_HEAD: &[u8] = &[0x30, 0x81, 0xa4, 0x02, 0x01, 0x01, 0x04, 0x30];
const SEC1_CURVE: &[u8] = &[0xa0, 0x07, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const SEC1_PUBLIC_BYTES: usize = 102;

/// A self-signed certificate and its key.
#[derive(Debug)]
pub struct Pair {
    /// PEM.
    pub certificate: String,
    /// DER.
    pub certificate_der: Vec<u8>,
    /// PEM.
    pub key: String,
}

/// The same key of P-384 in the form that Go's programs write it in.
fn sec1(pkcs8: &[u8]) -> String {
    let position = |bytes: &[u8]| {
        let found = pkcs8.windows(bytes.len()).rposition(|here| here == bytes);
        found.expect("a key of P-384")
    };
    let private = position(&SEC1_HEAD[3..]) + SEC1_HEAD.len() - 3;
    let public = &pkcs8[pkcs8.len() - SEC1_PUBLIC_BYTES..];
    let key = [SEC1_HEAD, &pkcs8[private..private + 48], SEC1_CURVE, public].concat();
    let text = base64(&key);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines = lines.collect::<Vec<_>>().join("\n");
    format!("-----BEGIN EC PRIVATE KEY-----\n{lines}\n-----END EC PRIVATE KEY-----\n")
}

impl Pair {
    /// What the client's library makes an identity of, for a peer that presents `peer`.
    #[must_use]
    pub fn identity_pem(&self, peer: &Self) -> IdentityPem {
        IdentityPem {
            certificate: self.certificate.clone().into(),
            key: self.key.clone().into(),
            peer: peer.certificate.clone().into(),
        }
    }

    /// A pair with a key as `agent-cli identity init` makes them: ECDSA P-256.
    #[must_use]
    pub fn small() -> Self {
        Self::new(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {})
    }

    /// A pair as LXD makes them: ECDSA P-384, the DNS name `unspecified`.
    #[must_use]
    pub fn lxd() -> Self {
        Self::new(&rcgen::PKCS_ECDSA_P384_SHA384, |_| {})
    }

    /// The pair of an agent, all of it as LXD 5.0.2 makes it: for a server only, though the agent
    /// shows it as a client too, and with a key by SEC 1.
    #[must_use]
    pub fn lxd_agent() -> Self {
        Self::lxd_for(ExtendedKeyUsagePurpose::ServerAuth, |_| {})
    }

    /// The pair that LXD 5.0.2's host has as a client of its agents: without a name that can be
    /// asked for.
    #[must_use]
    pub fn lxd_client() -> Self {
        Self::lxd_for(ExtendedKeyUsagePurpose::ClientAuth, |params| {
            params.subject_alt_names.clear();
        })
    }

    fn lxd_for(
        purpose: ExtendedKeyUsagePurpose,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut pair = Self::signed(&key, |params| {
            let mut name = DistinguishedName::new();
            name.push(DnType::OrganizationName, "linuxcontainers.org");
            name.push(DnType::CommonName, "root@host");
            params.distinguished_name = name;
            params.is_ca = IsCa::ExplicitNoCa;
            params.extended_key_usages = vec![purpose];
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
            change(params);
        });
        pair.key = sec1(&key.serialize_der());
        pair
    }

    /// A pair that ran out long ago.
    #[must_use]
    pub fn expired() -> Self {
        Self::new(&rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.not_before = date_time_ymd(1999, 1, 1);
            params.not_after = date_time_ymd(2000, 1, 1);
        })
    }

    fn new(kind: &'static SignatureAlgorithm, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::signed(&KeyPair::generate_for(kind).unwrap(), change)
    }

    fn signed(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new(["unspecified".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.self_signed(key).unwrap();
        Self {
            certificate: certificate.pem(),
            certificate_der: certificate.der().to_vec(),
            key: key.serialize_pem(),
        }
    }

    /// Writes what both ends of the machine `name` need, in the folders of `agent-cli identity init`:
    /// this is the agent's pair, and `client` the host's.
    pub fn write_for_cli(&self, folder: &Path, name: &str, client: &Self) {
        let machine = folder.join(name);
        fs::create_dir_all(machine.join("guest")).unwrap();
        self.write_agent(&machine.join("guest"), &[client]);
        fs::write(machine.join("agent.crt"), &self.certificate).unwrap();
        fs::write(folder.join("client.crt"), &client.certificate).unwrap();
        write_secret(&folder.join("client.key"), &client.key);
    }

    /// Writes what an agent needs: its own pair, and the certificates of `clients`.
    pub fn write_agent(&self, folder: &Path, clients: &[&Self]) {
        fs::write(folder.join("agent.crt"), &self.certificate).unwrap();
        write_secret(&folder.join("agent.key"), &self.key);
        let clients: String = clients
            .iter()
            .map(|pair| pair.certificate.as_str())
            .collect();
        fs::write(folder.join("server.crt"), clients).unwrap();
    }
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
