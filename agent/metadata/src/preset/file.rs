//! Parses a preset's TOML. The format is described in `README.md`.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use vsock_agent_protocol::preset::shipped;

use super::{Preset, known};
use crate::{
    route::{Body, Route},
    scope::{self, LISTS},
    shape::{Shape, ShapeError},
    template::{Template, TemplateError},
    token::TokenRule,
    toml_file,
};

/// The keys of a file, of a route, and of what is said of tokens.
const KEYS: [&str; 11] = [
    "extends",
    "address",
    "port",
    "versions",
    "document-versions",
    "listings",
    "require",
    "respond",
    "routes",
    "token",
    "smbios",
];
const ROUTE_KEYS: [&str; 10] = [
    "path", "method", "status", "type", "each", "when", "hidden", "text", "lines", "json",
];
const TOKEN_KEYS: [&str; 5] = ["path", "header", "ttl-header", "max-ttl", "refuse"];

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What is wrong with a part of a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Toml(String),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("only a preset that is shipped can be extended: {}", known())]
    Base,
    #[error("there is nothing called {0:?} here")]
    Key(String),
    #[error("{0} is not {1}")]
    Kind(&'static str, &'static str),
    #[error("there is no {0}")]
    Missing(&'static str),
    #[error("{0:?} is no name or no value of a header")]
    Header(String),
    #[error("a path begins with a slash")]
    Path,
    #[error("each is one of nics, public-keys, versions, document-versions")]
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
pub(crate) type Located<T> = Result<T, (usize, Fault)>;

/// Reads a preset.
///
/// # Errors
///
/// A [`Fault`], for the first thing that is wrong.
pub(crate) fn parse(name: &str, text: &str) -> Located<Preset> {
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().unwrap_or_default().start;
        (at, Fault::Toml(error.message().to_owned()))
    })?;
    let file = Part::of(0, document.get_ref(), &KEYS)?;
    let address = match file.text("address")? {
        None => None,
        Some((at, text)) => {
            let address: Result<IpAddr, _> = text.parse();
            let wrong = |_| (at, Fault::Kind("address", "an IP address"));
            Some(address.map_err(wrong)?)
        }
    };
    let mut preset = match file.text("extends")? {
        Some((at, name)) => base(name).ok_or((at, Fault::Base))?,
        None => Preset {
            name: String::new(),
            address: address.ok_or((0, Fault::Missing("address")))?,
            port: 80,
            versions: Vec::new(),
            document_versions: Vec::new(),
            listings: Vec::new(),
            require: Vec::new(),
            respond: Vec::new(),
            token: None,
            routes: Vec::new(),
        },
    };
    preset.name = name.to_owned();
    preset.address = address.unwrap_or(preset.address);
    preset.port = file.number("port")?.unwrap_or(preset.port);
    for (key, own) in [
        ("versions", &mut preset.versions),
        ("document-versions", &mut preset.document_versions),
    ] {
        let versions = file.texts(key)?.into_iter();
        let versions: Vec<_> = versions.map(|(_, version)| version.to_owned()).collect();
        if !versions.is_empty() {
            *own = versions;
        }
    }
    for (at, listing) in file.texts("listings")? {
        let template = Template::parse(listing, false);
        preset
            .listings
            .push(template.map_err(|error| (at, error.into()))?);
    }
    file.headers("require", &mut preset.require)?;
    file.headers("respond", &mut preset.respond)?;
    if let Some((at, value)) = file.get("token") {
        let wrong = (at, Fault::Kind("token", "a table"));
        let table = value.as_table().ok_or(wrong)?;
        preset.token = Some(token(&Part::of(at, table, &TOKEN_KEYS)?)?);
    }
    let mut routes = Vec::new();
    for (at, found) in file.list("routes")? {
        let wrong = (at, Fault::Kind("a route", "a table"));
        let found = Part::of(at, found.as_table().ok_or(wrong)?, &ROUTE_KEYS)?;
        routes.push(route(&found)?);
    }
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

fn token(part: &Part<'_>) -> Located<TokenRule> {
    let header = |key| match part.text(key)? {
        None => Ok(None),
        Some((at, name)) => {
            let header = name.parse::<HeaderName>();
            let wrong = |_| (at, Fault::Header(name.to_owned()));
            header.map(Some).map_err(wrong)
        }
    };
    let missing = |key| (part.at, Fault::Missing(key));
    Ok(TokenRule {
        path: part.text("path")?.ok_or(missing("path"))?.1.to_owned(),
        header: header("header")?.ok_or(missing("header"))?,
        ttl_header: header("ttl-header")?.ok_or(missing("ttl-header"))?,
        max_ttl: part.number("max-ttl")?.ok_or(missing("max-ttl"))?,
        refuse: header("refuse")?,
    })
}

fn route(part: &Part<'_>) -> Located<Route> {
    let wrong = |fault| (part.at, fault);
    let text = |key| Ok(part.text(key)?.map(|(_, text)| text));
    let path = text("path")?.filter(|path| path.starts_with('/'));
    let path = path.ok_or(wrong(Fault::Path))?;
    let each = text("each")?;
    let has_item = each.is_some();
    if each.is_some_and(|list| !LISTS.contains(&list)) {
        return Err(wrong(Fault::Each));
    }
    let when = text("when")?;
    if let Some(name) = when
        && !scope::is_known(name, has_item)
        && !LISTS.contains(&name)
    {
        return Err(wrong(Fault::When(name.to_owned())));
    }
    let template = |text| Template::parse(text, has_item).map_err(|error| wrong(error.into()));
    let shape =
        |(_, value)| Shape::parse(json(value), has_item).map_err(|error| wrong(error.into()));
    let (body, kind) = match (text("text")?, part.get("lines"), part.get("json")) {
        (Some(text), None, None) => (Body::Text(template(text)?), TEXT),
        (None, Some(lines), None) => (Body::Lines(shape(lines)?), TEXT),
        (None, None, Some(json)) => (Body::Json(shape(json)?), JSON),
        _ => return Err(wrong(Fault::Bodies)),
    };
    let kind = text("type")?.unwrap_or(kind);
    let status = part.number("status")?.unwrap_or(200);
    Ok(Route {
        method: match text("method")? {
            None | Some("GET") => Method::GET,
            Some("PUT") => Method::PUT,
            Some("POST") => Method::POST,
            Some("DELETE") => Method::DELETE,
            Some(_) => return Err(wrong(Fault::Method)),
        },
        path: template(path)?,
        each: each.map(str::to_owned),
        when: when.map(str::to_owned),
        hidden: part.flag("hidden")?,
        status: StatusCode::from_u16(status)
            .ok()
            .filter(|status| !status.is_informational())
            .ok_or(wrong(Fault::Status(status)))?,
        kind: HeaderValue::try_from(kind).map_err(|_| wrong(Fault::Header(kind.to_owned())))?,
        body,
    })
}

/// A table of the file, whose keys are known, and where it is.
struct Part<'a> {
    at: usize,
    table: &'a DeTable<'a>,
}

impl<'a> Part<'a> {
    fn of(at: usize, table: &'a DeTable<'a>, known: &[&str]) -> Located<Self> {
        let mut keys = table.keys();
        match keys.find(|key| !known.contains(&&**key.get_ref())) {
            None => Ok(Self { at, table }),
            Some(key) => {
                let name = key.get_ref().clone().into_owned();
                Err((key.span().start, Fault::Key(name)))
            }
        }
    }

    fn get(&self, key: &str) -> Option<(usize, &'a DeValue<'a>)> {
        let mut entries = self.table.iter();
        let (_, value) = entries.find(|(own, _)| own.get_ref() == key)?;
        Some((value.span().start, value.get_ref()))
    }

    fn text(&self, key: &'static str) -> Located<Option<(usize, &'a str)>> {
        self.get(key)
            .map(|(at, value)| Ok((at, value.as_str().ok_or((at, Fault::Kind(key, "a text")))?)))
            .transpose()
    }

    fn flag(&self, key: &'static str) -> Located<bool> {
        match self.get(key) {
            None => Ok(false),
            Some((at, value)) => value
                .as_bool()
                .ok_or((at, Fault::Kind(key, "true or false"))),
        }
    }

    fn number<N: TryFrom<u64>>(&self, key: &'static str) -> Located<Option<N>> {
        let Some((at, value)) = self.get(key) else {
            return Ok(None);
        };
        let wrong = (at, Fault::Kind(key, "a number that it can be"));
        toml_file::number(value).map(Some).ok_or(wrong)
    }

    fn list(&self, key: &'static str) -> Located<impl Iterator<Item = (usize, &'a DeValue<'a>)>> {
        let list: &[Spanned<DeValue<'a>>] = match self.get(key) {
            None => &[],
            Some((_, DeValue::Array(list))) => list,
            Some((at, _)) => return Err((at, Fault::Kind(key, "a list"))),
        };
        Ok(list.iter().map(|item| (item.span().start, item.get_ref())))
    }

    fn texts(&self, key: &'static str) -> Located<Vec<(usize, &'a str)>> {
        let texts = self.list(key)?.map(|(at, item)| {
            let text = item.as_str();
            Ok((at, text.ok_or((at, Fault::Kind(key, "a list of texts")))?))
        });
        texts.collect()
    }

    fn headers(
        &self,
        key: &'static str,
        headers: &mut Vec<(HeaderName, HeaderValue)>,
    ) -> Located<()> {
        let Some((at, value)) = self.get(key) else {
            return Ok(());
        };
        let table = value.as_table().ok_or((at, Fault::Kind(key, "a table")))?;
        for (name, value) in table {
            let text = value.get_ref().as_str().unwrap_or_default();
            let header = name.get_ref().parse().ok();
            let header = header.zip(HeaderValue::from_str(text).ok());
            let wrong = || Fault::Header(format!("{}: {text}", name.get_ref()));
            headers.push(header.ok_or_else(|| (value.span().start, wrong()))?);
        }
        Ok(())
    }
}

/// The same in JSON.
fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.as_str().into(), Into::into),
        DeValue::Float(number) => {
            let text = number.as_str();
            text.parse::<f64>().map_or_else(|_| text.into(), Into::into)
        }
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| json(item.get_ref()));
            items.collect::<Vec<_>>().into()
        }
        DeValue::Table(table) => {
            let mut map = Map::new();
            for (key, value) in table {
                map.insert(key.get_ref().clone().into_owned(), json(value.get_ref()));
            }
            map.into()
        }
    }
}
