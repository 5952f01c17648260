//! Text with `${name}` in it.
//!
//! ```text
//! ${name}              the value; without one, what contains the template is left out
//! ${name:-default}     the value, or the default
//! ${name|filter}       the value as base64, json (in quotes) or indent (by two spaces a line)
//! $$                   a dollar sign
//! ```

use data_encoding::BASE64;

use crate::scope::{self, Scope};

/// Text with placeholders for values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Value {
        name: String,
        default: Option<String>,
        filter: Option<Filter>,
    },
}

/// A conversion of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Base64,
    Json,
    Indent,
}

/// An error in a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("a dollar sign is neither $$ nor the beginning of ${{name}}")]
    Dollar,
    #[error("a ${{ has no end")]
    NoEnd,
    #[error("there is no value {0:?} here")]
    Name(String),
    #[error("there is no filter {0:?}: base64, json or indent")]
    Filter(String),
}

impl Template {
    /// Parses a template. `has_item` allows the values of a loop: `item.FIELD` and `index`.
    ///
    /// # Errors
    ///
    /// The first [`TemplateError`].
    pub(crate) fn parse(text: &str, has_item: bool) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let inner = after.strip_prefix('{').ok_or(TemplateError::Dollar)?;
            let (inner, after) = inner.split_once('}').ok_or(TemplateError::NoEnd)?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(value(inner, has_item)?);
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(pieces))
    }

    /// The text. `None` if a value without a default is missing.
    pub(crate) fn render(&self, scope: &Scope<'_>) -> Option<String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Value {
                    name,
                    default,
                    filter,
                } => {
                    let value = scope.text(name);
                    let value = value.as_deref().or(default.as_deref())?;
                    match filter {
                        None => text.push_str(value),
                        Some(filter) => text.push_str(&filter.apply(value)),
                    }
                }
            }
        }
        Some(text)
    }

    /// Whether all values without a default exist.
    pub(crate) fn has_values(&self, scope: &Scope<'_>) -> bool {
        self.0.iter().all(|piece| match piece {
            Piece::Literal(_) => true,
            Piece::Value { name, default, .. } => default.is_some() || scope.has(name),
        })
    }

    /// Whether it uses this value.
    pub(crate) fn uses(&self, value: &str) -> bool {
        self.0.iter().any(|piece| match piece {
            Piece::Literal(_) => false,
            Piece::Value { name, .. } => name == value,
        })
    }
}

fn value(inner: &str, has_item: bool) -> Result<Piece, TemplateError> {
    let (inner, default) = match inner.split_once(":-") {
        Some((inner, default)) => (inner, Some(default.to_owned())),
        None => (inner, None),
    };
    let (name, filter) = match inner.split_once('|') {
        Some((name, filter)) => (name, Some(Filter::parse(filter)?)),
        None => (inner, None),
    };
    if scope::is_known(name, has_item) {
        Ok(Piece::Value {
            name: name.to_owned(),
            default,
            filter,
        })
    } else {
        Err(TemplateError::Name(name.to_owned()))
    }
}

impl Filter {
    fn parse(name: &str) -> Result<Self, TemplateError> {
        match name {
            "base64" => Ok(Self::Base64),
            "json" => Ok(Self::Json),
            "indent" => Ok(Self::Indent),
            _ => Err(TemplateError::Filter(name.to_owned())),
        }
    }

    fn apply(self, text: &str) -> String {
        match self {
            Self::Base64 => BASE64.encode(text.as_bytes()),
            Self::Json => serde_json::Value::from(text).to_string(),
            Self::Indent => {
                let lines: Vec<_> = text.lines().map(|line| format!("  {line}")).collect();
                lines.join("\n")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::tests::with_scope;

    fn render(text: &str) -> Option<String> {
        let template = Template::parse(text, false).unwrap();
        with_scope(|scope| {
            let rendered = template.render(scope);
            assert_eq!(template.has_values(scope), rendered.is_some(), "{text}");
            rendered
        })
    }

    #[test]
    fn values_take_their_places() {
        for (text, expected) in [
            ("", ""),
            ("a$$b}", "a$b}"),
            ("${instance-id}/${hostname}", "i-1/guest"),
            ("${config.user.a.b}", "c"),
            ("${config.user.none:-x y}", "x y"),
            ("${config.user.none|base64:-x}", "eA=="),
            ("${hostname:-x}", "guest"),
            ("${user-data|json}", r##""#cloud-config\n{}\n""##),
            ("a:\n${user-data|indent}", "a:\n  #cloud-config\n  {}"),
            ("${meta.region}", "here"),
            ("${versions}", "1\nlatest"),
        ] {
            assert_eq!(render(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_no_text() {
        assert_eq!(render("a ${vendor-data}"), None);
        assert_eq!(render("${config.user.empty}"), None);
        assert_eq!(render("${meta.availability-zone}"), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, expected) in [
            ("$a", TemplateError::Dollar),
            ("a$", TemplateError::Dollar),
            ("${a", TemplateError::NoEnd),
            ("${}", TemplateError::Name(String::new())),
            ("${user}", TemplateError::Name("user".to_owned())),
            ("${item.mac}", TemplateError::Name("item.mac".to_owned())),
            ("${hostname|x}", TemplateError::Filter("x".to_owned())),
        ] {
            assert_eq!(Template::parse(text, false), Err(expected), "{text}");
        }
        Template::parse("${item.mac} ${index}", true).unwrap();
    }
}
