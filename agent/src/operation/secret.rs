//! Secrets of an operation's websockets, and ids of operations.

use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;
use vsock_agent_protocol::{exec::Secret, operation::OperationId};

/// A new secret.
///
/// # Errors
///
/// [`NoRandomness`].
pub(crate) fn random_secret() -> Result<Secret, NoRandomness> {
    random_bytes().map(Secret::from_random_bytes)
}

/// Whether `text` is this secret, in constant time.
pub(super) fn is_secret(secret: &Secret, text: &str) -> bool {
    secret.as_str().as_bytes().ct_eq(text.as_bytes()).into()
}

/// The kernel's random number generator failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel has no random numbers")]
pub(crate) struct NoRandomness;

/// A new id of an operation.
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
        let secret = random_secret().unwrap();
        assert_eq!(secret.as_str().len(), 64);
        assert!(is_secret(&secret, secret.as_str()));
        assert!(!is_secret(&secret, random_secret().unwrap().as_str()));
        assert!(!is_secret(&secret, ""));
    }

    #[test]
    fn a_secret_is_not_debugged() {
        let secret = random_secret().unwrap();
        assert!(!format!("{secret:?}").contains(secret.as_str()));
    }
}
