//! The secrets that join sockets to an operation, and the ids of operations.

use std::fmt;

use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;
use vsock_agent_protocol::operation::OperationId;

/// Random bytes of a secret, as many as LXD's.
const SECRET_BYTES: usize = 32;

/// A secret: 64 hexadecimal digits. Its `Debug` does not show it.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// A new secret.
    ///
    /// # Errors
    ///
    /// When the kernel has no random numbers.
    pub(crate) fn random() -> Result<Self, NoRandomness> {
        let bytes: [u8; SECRET_BYTES] = random_bytes()?;
        Ok(Self(HEXLOWER.encode(&bytes)))
    }

    /// Whether `text` is this secret, in constant time.
    pub(crate) fn matches(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(text.as_bytes()).into()
    }

    /// The digits, for the reply to the client that created the operation.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The kernel has no random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel has no random numbers")]
pub(crate) struct NoRandomness;

/// A new operation's id.
pub(super) fn random_id() -> Result<OperationId, NoRandomness> {
    random_bytes().map(OperationId::from_random_bytes)
}

fn random_bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_itself_only() {
        let secret = Secret::random().unwrap();
        assert!(secret.matches(secret.reveal()));
        assert!(!secret.matches(Secret::random().unwrap().reveal()));
        assert!(!secret.matches(""));
    }

    #[test]
    fn a_secret_is_not_debugged() {
        let secret = Secret::random().unwrap();
        assert!(!format!("{secret:?}").contains(secret.reveal()));
    }
}
