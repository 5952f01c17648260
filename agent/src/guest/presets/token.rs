//! Tokens: whoever can `PUT` with a header of one's own is no browser, and no proxy that was talked
//! into a request. Version 2 of Amazon's service has them, and others since.

use std::time::Duration;

use http::HeaderName;
use ring::{hmac, rand::SystemRandom};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::hex::hex;

/// What a preset says of tokens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenRule {
    /// Where they are had, by `PUT`.
    pub(super) path: String,
    /// The header that shows one.
    pub(super) header: HeaderName,
    /// The header that says for how many seconds it is to be.
    pub(super) ttl_header: HeaderName,
    /// Most of them.
    pub(super) max_ttl: u32,
    /// A request with this header gets neither a token nor anything else.
    pub(super) refuse: Option<HeaderName>,
}

/// Makes tokens and knows them again, until it is dropped. None is kept: a token is its last second,
/// signed.
#[derive(Debug)]
pub(super) struct Tokens {
    key: hmac::Key,
    since: Instant,
}

impl Tokens {
    /// `None` if the system has no random numbers.
    pub(super) fn new() -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        Some(Self {
            key,
            since: Instant::now(),
        })
    }

    /// A token for so many seconds.
    pub(super) fn issue(&self, ttl: u32) -> String {
        self.until(self.since.elapsed() + Duration::from_secs(ttl.into()))
    }

    /// Whether this is one, and not too old.
    pub(super) fn knows(&self, token: &str) -> bool {
        let end = token.split_once('-').and_then(|(end, _)| end.parse().ok());
        let Some(end) = end.map(Duration::from_millis) else {
            return false;
        };
        let own = self.until(end);
        self.since.elapsed() < end && bool::from(own.as_bytes().ct_eq(token.as_bytes()))
    }

    fn until(&self, end: Duration) -> String {
        let end = end.as_millis().to_string();
        let signature = hmac::sign(&self.key, end.as_bytes());
        format!("{end}-{}", hex(signature.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_known_until_its_time_is_over() {
        let tokens = Tokens::new().unwrap();
        let token = tokens.issue(2);
        advance(Duration::from_millis(1999)).await;
        assert!(tokens.knows(&token));
        advance(Duration::from_millis(1)).await;
        assert!(!tokens.knows(&token));
    }

    #[test]
    fn nobody_else_makes_tokens() {
        let (tokens, others) = (Tokens::new().unwrap(), Tokens::new().unwrap());
        let token = others.issue(60);
        assert!(others.knows(&token) && !tokens.knows(&token));
        let later = format!("9{}", tokens.issue(60));
        for token in ["", "-", "1-", &later, "99999-00", "\u{fc}-1", "+1-"] {
            assert!(!tokens.knows(token), "{token}");
        }
    }
}
