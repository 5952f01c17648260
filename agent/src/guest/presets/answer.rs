//! Answers a request: checks the preset's rules for headers and tokens, then looks up the route.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use percent_encoding::percent_decode_str;

use super::{
    Preset,
    scope::Values,
    table::{Found, plain},
    token::{TokenRule, Tokens},
};
use crate::{
    guest::instance_data::Snapshot,
    http::reply::{ApiError, Reply, full, text},
};

const TEXT: &str = "text/plain; charset=utf-8";

/// What is needed to answer a request.
#[derive(Debug)]
pub(super) struct Answering<'a> {
    pub(super) preset: &'a Preset,
    pub(super) tokens: &'a Tokens,
    /// Whether a service with tokens refuses requests without one.
    pub(super) only_with_token: bool,
    pub(super) snapshot: &'a Snapshot,
    /// The machine's network devices.
    pub(super) nics: fn(&Snapshot) -> Vec<serde_json::Value>,
}

impl Answering<'_> {
    /// Answers one request. Its body is never read.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Reply {
        let answer = self
            .find(request)
            .unwrap_or_else(ApiError::into_plain_reply);
        let mut reply = answer;
        for (name, value) in &self.preset.respond {
            reply.headers_mut().insert(name, value.clone());
        }
        reply
    }

    fn find<B>(&self, request: &Request<B>) -> Result<Reply, ApiError> {
        let headers = request.headers();
        let is_missing = |(name, value): &&(_, HeaderValue)| headers.get(name) != Some(value);
        if let Some((name, value)) = self.preset.require.iter().find(is_missing) {
            let value = value.to_str().unwrap_or_default();
            let text = format!("only with the header {name}: {value}");
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        let unknown = || ApiError::not_found("not found");
        // A client with a proxy in its environment sends the whole URL; this is its path.
        let path = percent_decode_str(request.uri().path()).decode_utf8();
        let path = path.map_err(|_| unknown())?;
        if let Some(rule) = &self.preset.token {
            let is_present = |name| headers.contains_key(name);
            if rule.refuse.as_ref().is_some_and(is_present) {
                let text = "a forwarded request is refused";
                return Err(ApiError::new(StatusCode::FORBIDDEN, text));
            }
            if plain(&path) == plain(&rule.path) {
                return self.token(rule, request.method(), headers);
            }
            self.check(rule, headers)?;
        }
        let nics = (self.nics)(self.snapshot);
        let values = Values::new(self.snapshot, nics, self.preset);
        match self.preset.find_path(&values, request.method(), &path) {
            Found::Answer { status, kind, text } => {
                let mut reply = Response::new(full(Bytes::from(text)));
                *reply.status_mut() = status;
                reply.headers_mut().insert(header::CONTENT_TYPE, kind);
                Ok(reply)
            }
            Found::Listing(names) => Ok(text(TEXT, names)),
            Found::WrongMethod(methods) => {
                let allow = match methods.first() {
                    Some(&Method::PUT) => "PUT",
                    Some(&Method::POST) => "POST",
                    Some(&Method::DELETE) => "DELETE",
                    _ => "GET, HEAD",
                };
                let text = format!("the method {} is not allowed here", request.method());
                Err(ApiError::wrong_method(text, allow))
            }
            Found::Nothing => Err(unknown()),
        }
    }

    fn token(
        &self,
        rule: &TokenRule,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Reply, ApiError> {
        if method != Method::PUT {
            return Err(ApiError::wrong_method("tokens are issued by PUT", "PUT"));
        }
        let ttl = headers
            .get(&rule.ttl_header)
            .and_then(|value| value.to_str().ok());
        let ttl = ttl.and_then(|value| value.parse().ok());
        let ttl = ttl.filter(|ttl| (1..=rule.max_ttl).contains(ttl));
        let ttl = ttl.ok_or_else(|| {
            let (name, most) = (&rule.ttl_header, rule.max_ttl);
            ApiError::bad_request(format!("{name} is a number of seconds from 1 to {most}"))
        })?;
        let mut reply = text(TEXT, self.tokens.issue(ttl));
        reply.headers_mut().insert(&rule.ttl_header, ttl.into());
        Ok(reply)
    }

    fn check(&self, rule: &TokenRule, headers: &HeaderMap) -> Result<(), ApiError> {
        let is_valid = match headers.get(&rule.header) {
            None => !self.only_with_token,
            Some(token) => token.to_str().is_ok_and(|token| self.tokens.verify(token)),
        };
        if is_valid {
            Ok(())
        } else {
            Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "a valid token is required",
            ))
        }
    }
}
