//! Answers a request: checks the preset's rules for headers and tokens, then looks up the route.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::{
    Instance, Service,
    preset::{Found, plain},
    token::TokenRule,
};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A request that gets an error.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
    /// The allowed methods, for 405.
    allow: Option<&'static str>,
}

impl Service {
    /// Answers one request with the data of `instance`. The request's body is never read.
    pub fn answer<B>(&self, request: &Request<B>, instance: &dyn Instance) -> Response<String> {
        let mut reply = self
            .find(request, instance)
            .unwrap_or_else(Refusal::into_reply);
        for (name, value) in &self.preset.respond {
            reply.headers_mut().insert(name, value.clone());
        }
        reply
    }

    fn find<B>(
        &self,
        request: &Request<B>,
        instance: &dyn Instance,
    ) -> Result<Response<String>, Refusal> {
        let headers = request.headers();
        let is_missing = |(name, value): &&(_, HeaderValue)| headers.get(name) != Some(value);
        if let Some((name, value)) = self.preset.require.iter().find(is_missing) {
            let value = value.to_str().unwrap_or_default();
            let text = format!("only with the header {name}: {value}");
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        let unknown = || Refusal::new(StatusCode::NOT_FOUND, "not found");
        // A client with a proxy in its environment sends the whole URL; this is its path.
        let path = percent_decode_str(request.uri().path()).decode_utf8();
        let path = path.map_err(|_| unknown())?;
        if let Some(rule) = &self.preset.token {
            let is_present = |name| headers.contains_key(name);
            if rule.refuse.as_ref().is_some_and(is_present) {
                let text = "a forwarded request is refused";
                return Err(Refusal::new(StatusCode::FORBIDDEN, text));
            }
            if plain(&path) == plain(&rule.path) {
                return self.token(rule, request.method(), headers);
            }
            self.check(rule, headers)?;
        }
        let values = self.preset.values(instance);
        match self.preset.find_path(&values, request.method(), &path) {
            Found::Answer { status, kind, text } => Ok(reply(status, kind, text)),
            Found::Listing(names) => Ok(reply(StatusCode::OK, TEXT, names)),
            Found::WrongMethod(methods) => {
                let allow = match methods.first() {
                    Some(&Method::PUT) => "PUT",
                    Some(&Method::POST) => "POST",
                    Some(&Method::DELETE) => "DELETE",
                    _ => "GET, HEAD",
                };
                let text = format!("the method {} is not allowed here", request.method());
                Err(Refusal::wrong_method(text, allow))
            }
            Found::Nothing => Err(unknown()),
        }
    }

    fn token(
        &self,
        rule: &TokenRule,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response<String>, Refusal> {
        if method != Method::PUT {
            return Err(Refusal::wrong_method("tokens are issued by PUT", "PUT"));
        }
        let ttl = headers
            .get(&rule.ttl_header)
            .and_then(|value| value.to_str().ok());
        let ttl = ttl.and_then(|value| value.parse().ok());
        let ttl = ttl.filter(|ttl| (1..=rule.max_ttl).contains(ttl));
        let ttl = ttl.ok_or_else(|| {
            let (name, most) = (&rule.ttl_header, rule.max_ttl);
            let text = format!("{name} is a number of seconds from 1 to {most}");
            Refusal::new(StatusCode::BAD_REQUEST, text)
        })?;
        let mut reply = reply(StatusCode::OK, TEXT, self.tokens.issue(ttl));
        reply.headers_mut().insert(&rule.ttl_header, ttl.into());
        Ok(reply)
    }

    fn check(&self, rule: &TokenRule, headers: &HeaderMap) -> Result<(), Refusal> {
        let is_valid = match headers.get(&rule.header) {
            None => !self.only_with_token,
            Some(token) => token.to_str().is_ok_and(|token| self.tokens.verify(token)),
        };
        if is_valid {
            Ok(())
        } else {
            let text = "a valid token is required";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, text))
        }
    }
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            allow: None,
        }
    }

    fn wrong_method(text: impl Into<String>, allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, text)
        }
    }

    fn into_reply(self) -> Response<String> {
        let mut reply = reply(self.status, TEXT, self.text + "\n");
        let headers = reply.headers_mut();
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        reply
    }
}

fn reply(status: StatusCode, kind: HeaderValue, text: String) -> Response<String> {
    let mut reply = Response::new(text);
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    reply
}
