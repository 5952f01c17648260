//! Session tokens, as in version 2 of Amazon's service: a browser or a proxy that was tricked into a
//! request cannot send a `PUT` with a custom header.

use std::time::Duration;

use data_encoding::HEXLOWER;
use http::HeaderName;
use ring::{hmac, rand::SystemRandom};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// The token rules of a preset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TokenRule {
    /// The path that issues them, by `PUT`.
    pub(crate) path: String,
    /// The header with the token of a request.
    pub(crate) header: HeaderName,
    /// The header with the requested lifetime, in seconds.
    pub(crate) ttl_header: HeaderName,
    /// The longest lifetime, in seconds.
    pub(crate) max_ttl: u32,
    /// A request with this header is refused.
    pub(crate) refuse: Option<HeaderName>,
}

/// Issues and verifies tokens. None is stored: a token is its expiry time, signed with a key of this
/// value.
#[derive(Debug)]
pub(crate) struct Tokens {
    key: hmac::Key,
    since: Instant,
}

impl Tokens {
    /// `None` if the system has no random numbers.
    pub(crate) fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        Some(Self {
            key,
            since: Instant::now(),
        })
    }

    /// A token for `ttl` seconds.
    pub(crate) fn issue(&self, ttl: u32) -> String {
        self.expiring_at(self.since.elapsed() + Duration::from_secs(ttl.into()))
    }

    /// Whether this token is valid and has not expired.
    pub(crate) fn verify(&self, token: &str) -> bool {
        let end = token.split_once('-').and_then(|(end, _)| end.parse().ok());
        let Some(end) = end.map(Duration::from_millis) else {
            return false;
        };
        let own = self.expiring_at(end);
        self.since.elapsed() < end && bool::from(own.as_bytes().ct_eq(token.as_bytes()))
    }

    fn expiring_at(&self, end: Duration) -> String {
        let end = end.as_millis().to_string();
        let signature = hmac::sign(&self.key, end.as_bytes());
        format!("{end}-{}", HEXLOWER.encode(signature.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_valid_until_it_expires() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue(2);
        advance(Duration::from_millis(1999)).await;
        assert!(tokens.verify(&token));
        advance(Duration::from_millis(1)).await;
        assert!(!tokens.verify(&token));
    }

    #[test]
    fn forged_tokens_are_rejected() {
        let (tokens, others) = (Tokens::new().unwrap(), Tokens::new().unwrap());
        let token = others.issue(60);
        assert!(others.verify(&token) && !tokens.verify(&token));
        let later = format!("9{}", tokens.issue(60));
        for token in ["", "-", "1-", &later, "99999-00", "\u{fc}-1", "+1-"] {
            assert!(!tokens.verify(token), "{token}");
        }
    }
}
