//! TLS as LXD's hosts and agents do it, written from what they do and not from our own ends: version
//! 1.3 only, and each end knows the other by the bytes of its certificate.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName,
    Error, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::CertifiedKey,
    version::TLS13,
};

use crate::Pair;

/// The name in an agent's certificate, which the host asks for.
pub(crate) const AGENT_NAME: &str = "unspecified";

/// What a host needs to speak to `agent`.
pub(crate) fn client_config(own: &Pair, agent: &Pair) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let key = provider.key_provider.load_private_key(own.private_key());
    let shown = CertifiedKey::new(vec![own.certificate()], key.unwrap());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned::new(agent, provider)))
        .with_client_cert_resolver(Arc::new(Shown(Arc::new(shown))));
    // Go resumes no session unless it is given a cache, and LXD gives it none.
    config.resumption = Resumption::disabled();
    config
}

/// The first words of a host's handshake.
#[must_use]
pub fn client_hello(own: &Pair, agent: &Pair) -> Vec<u8> {
    let name = ServerName::try_from(AGENT_NAME).unwrap();
    let config = Arc::new(client_config(own, agent));
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// What a host needs to be asked; with an `agent`, by that one alone.
pub(crate) fn server_config(own: &Pair, agent: Option<&Pair>) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap();
    let builder = match agent {
        None => builder.with_no_client_auth(),
        Some(agent) => builder.with_client_cert_verifier(Arc::new(Pinned::new(agent, provider))),
    };
    builder
        .with_single_cert(vec![own.certificate()], own.private_key())
        .unwrap()
}

impl Pair {
    fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from(self.certificate_der.clone())
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// The certificate that a host shows, by Go's rule for one of its own: only to an agent that names no
/// authorities, and takes its kind of signature.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let is_wanted = authorities.is_empty() && self.0.key.choose_scheme(schemes).is_some();
        is_wanted.then(|| Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Knows the other end by its certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn new(pair: &Pair, provider: Arc<CryptoProvider>) -> Self {
        Self {
            certificate: pair.certificate(),
            provider,
        }
    }

    fn compare(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if *shown == self.certificate {
            Ok(())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }
}

/// What both kinds of verifier have: signatures of TLS 1.3.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let known = &self.provider.signature_verification_algorithms;
            known.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.compare(shown)
            .map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.compare(shown)
            .map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
