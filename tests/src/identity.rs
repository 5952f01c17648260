//! Certificates for both ends, of any kind a test wants.

use std::{fs, path::Path};

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm, date_time_ymd};

/// A self-signed certificate and its key.
#[derive(Debug)]
pub struct Pair {
    /// PEM.
    pub certificate: String,
    /// DER.
    pub certificate_der: Vec<u8>,
    /// PEM, PKCS #8.
    pub key: String,
}

impl Pair {
    /// A pair as LXD makes them: ECDSA P-384, the DNS name `unspecified`.
    #[must_use]
    pub fn lxd() -> Self {
        Self::new(&rcgen::PKCS_ECDSA_P384_SHA384, |_| {})
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
        let key = KeyPair::generate_for(kind).unwrap();
        let mut params = CertificateParams::new(["unspecified".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.pem(),
            certificate_der: certificate.der().to_vec(),
            key: key.serialize_pem(),
        }
    }

    /// Writes what an agent needs: its own pair, and the certificates of `clients`.
    pub fn write_agent(&self, folder: &Path, clients: &[&Self]) {
        fs::write(folder.join("agent.crt"), &self.certificate).unwrap();
        fs::write(folder.join("agent.key"), &self.key).unwrap();
        let clients: String = clients
            .iter()
            .map(|pair| pair.certificate.as_str())
            .collect();
        fs::write(folder.join("server.crt"), clients).unwrap();
    }
}
