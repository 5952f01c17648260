//! A preset as it is written: TOML, read and checked as a whole.
//!
//! ```text
//! extends = "imds"            everything of a preset that is shipped, behind what is said here; not
//!                             its tokens
//! address = "169.254.169.254"
//! port = 80
//! versions = ["latest"]       what ${version} in a path can be
//! listings = ["/${version}/meta-data"]   where every folder lists what is in it
//! require = { Metadata-Flavor = "Google" }   headers without which there is no answer: 403
//! respond = { Metadata-Flavor = "Google" }   headers of every answer
//! routes = [                  the first that fits and has its values; no other is there
//!     { path = "/${version}/user-data", text = "${user-data}" },
//!     { path = "/keys/${index}", each = "public-keys", text = "${item.key}" },
//! ]                           also: lines, json, method, status, type, when, hidden
//! [token]                     path, header, ttl-header, max-ttl, refuse
//! [smbios.system]             for the host
//! ```

use std::{collections::BTreeMap, net::IpAddr};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use toml::Spanned;
use vsock_agent_protocol::preset::shipped;

use super::{
    preset::{Preset, known},
    scope::{self, LISTS},
    shape::{Shape, ShapeError},
    table::{Body, Route},
    template::{Template, TemplateError},
    token::TokenRule,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    extends: Option<Spanned<String>>,
    address: Option<IpAddr>,
    port: Option<u16>,
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    listings: Vec<Spanned<String>>,
    #[serde(default)]
    require: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    respond: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    routes: Vec<Spanned<FileRoute>>,
    token: Option<FileToken>,
    #[serde(rename = "smbios")]
    _smbios: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileRoute {
    path: String,
    method: Option<String>,
    status: Option<u16>,
    r#type: Option<String>,
    each: Option<String>,
    when: Option<String>,
    #[serde(default)]
    hidden: bool,
    text: Option<String>,
    lines: Option<Value>,
    json: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct FileToken {
    path: String,
    header: Spanned<String>,
    ttl_header: Spanned<String>,
    max_ttl: u32,
    refuse: Option<Spanned<String>>,
}

/// What is wrong with a part of a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Toml(String),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("only a preset that is shipped can be extended: {}", known())]
    Base,
    #[error("there is no address")]
    NoAddress,
    #[error("{0:?} is no name or no value of a header")]
    Header(String),
    #[error("a path begins with a slash")]
    Path,
    #[error("each is one of nics, public-keys, versions")]
    Each,
    #[error("there is no value {0:?}")]
    When(String),
    #[error("a route has one of text, lines and json")]
    Bodies,
    #[error("the method is one of GET, PUT, POST, DELETE")]
    Method,
    #[error("{0} is no status for an answer")]
    Status(u16),
}

/// A fault, and where it is in the text, in bytes.
pub(super) type Located<T> = Result<T, (usize, Fault)>;

/// Reads a preset.
///
/// # Errors
///
/// A [`Fault`], for the first thing that is wrong.
pub(super) fn parse(name: &str, text: &str) -> Located<Preset> {
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().unwrap_or_default().start;
        (at, Fault::Toml(error.message().to_owned()))
    })?;
    let mut preset = match &file.extends {
        Some(name) => base(name.get_ref()).ok_or((name.span().start, Fault::Base))?,
        None => Preset {
            name: String::new(),
            address: file.address.ok_or((0, Fault::NoAddress))?,
            port: 80,
            versions: Vec::new(),
            listings: Vec::new(),
            require: Vec::new(),
            respond: Vec::new(),
            token: None,
            routes: Vec::new(),
        },
    };
    preset.name = name.to_owned();
    preset.address = file.address.unwrap_or(preset.address);
    preset.port = file.port.unwrap_or(preset.port);
    if !file.versions.is_empty() {
        preset.versions = file.versions;
    }
    for listing in file.listings {
        let at = listing.span().start;
        let template =
            Template::parse(listing.get_ref(), false).map_err(|error| (at, error.into()))?;
        preset.listings.push(template);
    }
    preset.require.extend(headers(file.require)?);
    preset.respond.extend(headers(file.respond)?);
    preset.token = file.token.map(token).transpose()?;
    let routes = file.routes.into_iter().map(|found| {
        let at = found.span().start;
        route(found.into_inner()).map_err(|fault| (at, fault))
    });
    let mut routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
    routes.append(&mut preset.routes);
    preset.routes = routes;
    Ok(preset)
}

/// A preset to start from. None of those that are shipped is wrong.
fn base(name: &str) -> Option<Preset> {
    let mut base = parse(name, shipped(name)?).ok()?;
    base.token = None;
    Some(base)
}

fn headers(headers: BTreeMap<String, Spanned<String>>) -> Located<Vec<(HeaderName, HeaderValue)>> {
    let headers = headers.into_iter().map(|(name, value)| {
        let at = value.span().start;
        let header = name
            .parse()
            .ok()
            .zip(HeaderValue::try_from(value.get_ref()).ok());
        header.ok_or_else(|| (at, Fault::Header(format!("{name}: {}", value.get_ref()))))
    });
    headers.collect()
}

fn token(file: FileToken) -> Located<TokenRule> {
    let header = |name: Spanned<String>| {
        let at = name.span().start;
        let wrong = || (at, Fault::Header(name.get_ref().clone()));
        name.get_ref().parse::<HeaderName>().map_err(|_| wrong())
    };
    Ok(TokenRule {
        path: file.path,
        header: header(file.header)?,
        ttl_header: header(file.ttl_header)?,
        max_ttl: file.max_ttl,
        refuse: file.refuse.map(header).transpose()?,
    })
}

fn route(file: FileRoute) -> Result<Route, Fault> {
    if !file.path.starts_with('/') {
        return Err(Fault::Path);
    }
    let has_item = file.each.is_some();
    if file
        .each
        .as_ref()
        .is_some_and(|list| !LISTS.contains(&list.as_str()))
    {
        return Err(Fault::Each);
    }
    if let Some(name) = &file.when
        && !scope::is_known(name, has_item)
        && !LISTS.contains(&name.as_str())
    {
        return Err(Fault::When(name.clone()));
    }
    let shape = |value| Shape::parse(value, has_item);
    let (body, kind) = match (file.text, file.lines, file.json) {
        (Some(text), None, None) => (Body::Text(Template::parse(&text, has_item)?), TEXT),
        (None, Some(lines), None) => (Body::Lines(shape(lines)?), TEXT),
        (None, None, Some(json)) => (Body::Json(shape(json)?), JSON),
        _ => return Err(Fault::Bodies),
    };
    let kind = file.r#type.as_deref().unwrap_or(kind);
    let status = file.status.unwrap_or(200);
    Ok(Route {
        method: match file.method.as_deref() {
            None | Some("GET") => Method::GET,
            Some("PUT") => Method::PUT,
            Some("POST") => Method::POST,
            Some("DELETE") => Method::DELETE,
            Some(_) => return Err(Fault::Method),
        },
        path: Template::parse(&file.path, has_item)?,
        each: file.each,
        when: file.when,
        hidden: file.hidden,
        status: StatusCode::from_u16(status)
            .ok()
            .filter(|status| !status.is_informational())
            .ok_or(Fault::Status(status))?,
        kind: HeaderValue::try_from(kind).map_err(|_| Fault::Header(kind.to_owned()))?,
        body,
    })
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
