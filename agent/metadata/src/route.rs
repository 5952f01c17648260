//! A route of a preset: its path and the body of its replies.

use http::{HeaderValue, Method, StatusCode};
use serde_json::Value;

use crate::{scope::Scope, shape::Shape, template::Template};

/// The reply at one path, or at one for each item of a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// With a slash at its end it is a folder, which is also found without.
    pub(crate) path: Template,
    pub(crate) each: Option<String>,
    /// The route exists only if this value does.
    pub(crate) when: Option<String>,
    /// Not in listings.
    pub(crate) hidden: bool,
    pub(crate) status: StatusCode,
    pub(crate) kind: HeaderValue,
    pub(crate) body: Body,
}

/// The body of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Text(Template),
    /// A list, one item a line.
    Lines(Shape),
    Json(Shape),
}

impl Route {
    /// Whether its body uses this value.
    pub(crate) fn uses(&self, name: &str) -> bool {
        match &self.body {
            Body::Text(template) => template.uses(name),
            Body::Lines(shape) | Body::Json(shape) => shape.uses(name),
        }
    }
}

impl Body {
    pub(crate) fn has_values(&self, scope: &Scope<'_>) -> bool {
        match self {
            Self::Text(template) => template.has_values(scope),
            Self::Lines(_) | Self::Json(_) => true,
        }
    }

    pub(crate) fn render(&self, scope: &Scope<'_>) -> Option<String> {
        match self {
            Self::Text(template) => template.render(scope),
            Self::Json(shape) => Some(shape.render(scope)?.to_string()),
            Self::Lines(shape) => {
                let Value::Array(lines) = shape.render(scope)? else {
                    return None;
                };
                let lines: Vec<_> = lines.iter().filter_map(Value::as_str).collect();
                Some(lines.join("\n"))
            }
        }
    }
}
