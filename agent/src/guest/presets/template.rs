//! Text with `${name}` in it.
//!
//! ```text
//! ${name}              the value; what holds the template is not there if the value is not
//! ${name:-otherwise}   the value, or these words
//! ${name|filter}       the value as base64, json (in quotes) or indent (by two spaces a line)
//! $$                   a dollar sign
//! ```

use super::scope::{self, Scope};

/// Text with places for values.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Value {
        name: String,
        otherwise: Option<String>,
        filter: Option<Filter>,
    },
}

/// What becomes of a value on its way into the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Base64,
    Json,
    Indent,
}

/// Text that is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
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
    /// Reads a template. `has_item` says whether it may speak of the item of a loop.
    ///
    /// # Errors
    ///
    /// [`TemplateError`], for the first thing that is wrong.
    pub(super) fn parse(text: &str, has_item: bool) -> Result<Self, TemplateError> {
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

    /// The text. `None` if a value that it needs is not there.
    pub(super) fn render(&self, scope: &Scope<'_>) -> Option<String> {
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Value {
                    name,
                    otherwise,
                    filter,
                } => {
                    let value = scope.text(name);
                    let value = value.as_deref().or(otherwise.as_deref())?;
                    match filter {
                        None => text.push_str(value),
                        Some(filter) => text.push_str(&filter.apply(value)),
                    }
                }
            }
        }
        Some(text)
    }

    /// Whether all that it needs is there.
    pub(super) fn is_there(&self, scope: &Scope<'_>) -> bool {
        self.0.iter().all(|piece| match piece {
            Piece::Literal(_) => true,
            Piece::Value {
                name, otherwise, ..
            } => otherwise.is_some() || scope.has(name),
        })
    }

    /// Whether it speaks of this value.
    pub(super) fn names(&self, wanted: &str) -> bool {
        self.0.iter().any(|piece| match piece {
            Piece::Literal(_) => false,
            Piece::Value { name, .. } => name == wanted,
        })
    }
}

fn value(inner: &str, has_item: bool) -> Result<Piece, TemplateError> {
    let (inner, otherwise) = match inner.split_once(":-") {
        Some((inner, otherwise)) => (inner, Some(otherwise.to_owned())),
        None => (inner, None),
    };
    let (name, filter) = match inner.split_once('|') {
        Some((name, filter)) => (name, Some(Filter::parse(filter)?)),
        None => (inner, None),
    };
    if scope::is_known(name, has_item) {
        Ok(Piece::Value {
            name: name.to_owned(),
            otherwise,
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
            Self::Base64 => base64(text.as_bytes()),
            Self::Json => serde_json::Value::from(text).to_string(),
            Self::Indent => {
                let lines: Vec<_> = text.lines().map(|line| format!("  {line}")).collect();
                lines.join("\n")
            }
        }
    }
}

/// RFC 4648, section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let index = (bits >> (18 - 6 * at)) & 63;
            let letter = usize::try_from(index).ok().and_then(|i| ALPHABET.get(i));
            match letter.filter(|_| at <= chunk.len()) {
                Some(letter) => text.push(char::from(*letter)),
                None => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::scope::tests::with_scope, *};

    fn render(text: &str) -> Option<String> {
        let template = Template::parse(text, false).unwrap();
        with_scope(|scope| {
            let rendered = template.render(scope);
            assert_eq!(template.is_there(scope), rendered.is_some(), "{text}");
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

    #[test]
    fn base64_is_as_the_rfc_has_it() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{3ff}\u{7ff}", "z7/fvw=="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
    }
}
