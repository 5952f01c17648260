//! The server's side of a handshake, with peers that may send nothing or nonsense.

use std::{io, sync::Arc, time::Duration};

use rustls::{ServerConfig, server::Acceptor};
use tokio::{sync::Semaphore, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{Slot, Stream};

/// Time for a peer to send its `ClientHello` before it may be evicted for another one, when no slot is
/// free. A client sends it as soon as it is connected. With [`Limits::UNVERIFIED`](crate::Limits), 5,120
/// silent peers a second are evicted.
const GRACE: Duration = Duration::from_millis(100);

/// The same for what takes a client on a busy or emulated machine longer: its part of the handshake, or a
/// request. One that is evicted here does not know whether its request was received. 1,024 peers a second
/// are evicted, if the processor allows.
pub const LONG_GRACE: Duration = Duration::from_millis(500);

/// Time for a client that was refused to read why and close.
pub const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no connection with TLS.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer was evicted.
    #[error("the slot was needed for another connection")]
    Evicted,
    /// The peer did not do its part in time.
    #[error("TLS handshake timed out")]
    TimedOut,
    /// The peer does not speak TLS, or has no certificate that is accepted.
    #[error(transparent)]
    Refused(io::Error),
}

/// Performs a handshake with the peer that holds `slot`. Each of the peer's two steps may take `limit`.
///
/// Our own part is computed while this holds a permit of `turns`, if there are any: with one permit, many
/// peers leave processor time to others. `config` is called when the `ClientHello` has arrived, and
/// `refused` as soon as the peer is refused. A refused peer is sent an alert with the reason; then this
/// waits up to [`REFUSAL_TIMEOUT`] for it to close, because closing a socket with unread data resets it,
/// and the alert would be lost.
///
/// # Errors
///
/// [`HandshakeError`].
pub async fn accept(
    stream: Stream,
    slot: &Slot,
    turns: Option<&Semaphore>,
    limit: Duration,
    config: impl FnOnce() -> Arc<ServerConfig>,
    refused: impl FnOnce(&io::Error),
) -> Result<TlsStream<Stream>, HandshakeError> {
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let (error, stream) = match step(slot, GRACE, limit, &mut acceptor).await? {
        Ok(client_hello) => {
            let turn = match turns {
                Some(turns) => turns.acquire().await.ok(),
                None => None,
            };
            let accept = client_hello.into_stream(config()).into_fallible();
            drop(turn);
            match step(slot, LONG_GRACE, limit, accept).await? {
                Ok(stream) => return Ok(stream),
                Err((error, stream)) => (error, Some(stream)),
            }
        }
        Err(error) => (error, acceptor.take_io()),
    };
    refused(&error);
    if let Some(stream) = stream {
        let watch = stream.watch();
        let drained = timeout(REFUSAL_TIMEOUT, watch.drain());
        let _ = slot.wait_for(GRACE, drained).await;
    }
    Err(HandshakeError::Refused(error))
}

/// Waits for the peer's part of a handshake.
async fn step<T>(
    slot: &Slot,
    grace: Duration,
    limit: Duration,
    step: impl Future<Output = T>,
) -> Result<T, HandshakeError> {
    let waited = slot.wait_for(grace, timeout(limit, step)).await;
    let in_time = waited.ok_or(HandshakeError::Evicted)?;
    in_time.map_err(|_| HandshakeError::TimedOut)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::{Admission, Limits, tls};

    const LONG: Duration = Duration::from_secs(60);

    /// More than a client has sent when it is refused.
    const LATE_DATA: [u8; 4096] = [b'x'; 4096];

    fn identity() -> (CertificateDer<'static>, Arc<rustls::sign::SingleCertAndKey>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["agent".to_owned()]).unwrap();
        let key = signing_key.serialize_der().try_into().unwrap();
        let own = tls::credentials(vec![cert.der().clone()], key).unwrap();
        (cert.der().clone(), own)
    }

    /// Refuses a client, and returns its error. It has data under way that the server does not read.
    async fn refuse(client: impl AsyncFn(UnixStream, CertificateDer<'static>)) {
        let (certificate, own) = identity();
        let config = tls::server_config(own, vec![identity().0]).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let slot = Admission::new(Limits::UNVERIFIED).enter(false).await;
        let slot = slot.unwrap();
        let accepting = accept(ours.into(), &slot, None, LONG, || config, |_| {});
        let (accepted, ()) = tokio::join!(accepting, client(theirs, certificate));
        assert!(
            matches!(accepted, Err(HandshakeError::Refused(_))),
            "{accepted:?}"
        );
    }

    #[tokio::test]
    async fn a_client_without_the_certificate_reads_why_it_is_refused() {
        refuse(async |stream, certificate| {
            let connector =
                TlsConnector::from(tls::client_config(None, vec![certificate]).unwrap());
            let name = ServerName::try_from("agent").unwrap();
            // In TLS 1.3 the client is done before the server checks its certificate.
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(&LATE_DATA).await.unwrap();
            let error = stream.read(&mut [0]).await.unwrap_err();
            assert!(error.to_string().contains("CertificateRequired"), "{error}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_client_without_tls_reads_an_alert_and_the_end() {
        /// The type of a record with an alert (RFC 8446, section 5.1).
        const ALERT: u8 = 21;
        refuse(async |mut stream, _| {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            stream.write_all(&LATE_DATA).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer.first(), Some(&ALERT), "{answer:?}");
        })
        .await;
    }
}
