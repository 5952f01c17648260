//! A JSON document whose strings are templates, rendered for each request.
//!
//! A string with a missing value is left out. A table with `each = LIST` becomes a list of its `value`
//! for each item, or an object if it has a `key`.

use serde_json::{Map, Value};

use crate::{
    scope::{LISTS, Scope},
    template::{Template, TemplateError},
};

/// A template of a document, or of a part of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Text(Template),
    List(Vec<Shape>),
    Object(Vec<(String, Shape)>),
    Each {
        list: String,
        key: Option<Template>,
        value: Box<Shape>,
    },
    /// A number or a boolean.
    Other(Value),
}

/// An error in a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ShapeError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("each is one of nics, public-keys, versions, document-versions")]
    List,
    #[error("a table with each has a value, perhaps a key, and nothing else")]
    Each,
}

impl Shape {
    /// Parses a shape. `has_item` is that of [`Template::parse`].
    ///
    /// # Errors
    ///
    /// The first [`ShapeError`].
    pub(crate) fn parse(value: Value, has_item: bool) -> Result<Self, ShapeError> {
        Ok(match value {
            Value::String(text) => Self::Text(Template::parse(&text, has_item)?),
            Value::Array(items) => {
                let items = items.into_iter().map(|item| Self::parse(item, has_item));
                Self::List(items.collect::<Result<_, _>>()?)
            }
            Value::Object(map) if map.contains_key("each") => each(map)?,
            Value::Object(map) => {
                let members = map
                    .into_iter()
                    .map(|(key, value)| Ok((key, Self::parse(value, has_item)?)));
                Self::Object(members.collect::<Result<_, ShapeError>>()?)
            }
            other => Self::Other(other),
        })
    }

    /// The document. `None` if it is a string with a missing value.
    pub(crate) fn render(&self, scope: &Scope<'_>) -> Option<Value> {
        Some(match self {
            Self::Text(template) => template.render(scope)?.into(),
            Self::Other(value) => value.clone(),
            Self::List(items) => {
                let items = items.iter().filter_map(|item| item.render(scope));
                items.collect::<Vec<_>>().into()
            }
            Self::Object(members) => {
                let mut map = Map::new();
                for (key, value) in members {
                    if let Some(value) = value.render(scope) {
                        map.insert(key.clone(), value);
                    }
                }
                map.into()
            }
            Self::Each { list, key, value } => {
                let scopes = scope.each(list);
                match key {
                    None => {
                        let items = scopes.filter_map(|scope| value.render(&scope));
                        items.collect::<Vec<_>>().into()
                    }
                    Some(key) => {
                        let mut map = Map::new();
                        for scope in scopes {
                            if let (Some(key), Some(value)) =
                                (key.render(&scope), value.render(&scope))
                            {
                                map.insert(key, value);
                            }
                        }
                        map.into()
                    }
                }
            }
        })
    }
}

impl Shape {
    /// Whether it uses this value.
    pub(crate) fn uses(&self, name: &str) -> bool {
        match self {
            Self::Text(template) => template.uses(name),
            Self::List(items) => items.iter().any(|item| item.uses(name)),
            Self::Object(members) => members.iter().any(|(_, value)| value.uses(name)),
            Self::Each { value, .. } => value.uses(name),
            Self::Other(_) => false,
        }
    }
}

fn each(mut map: Map<String, Value>) -> Result<Shape, ShapeError> {
    let list = map.remove("each");
    let key = map.remove("key");
    let value = map.remove("value").ok_or(ShapeError::Each)?;
    let key = match key {
        None => None,
        Some(Value::String(key)) => Some(Template::parse(&key, true)?),
        Some(_) => return Err(ShapeError::Each),
    };
    match list {
        Some(Value::String(list)) if LISTS.contains(&list.as_str()) => {
            if map.is_empty() {
                Ok(Shape::Each {
                    list,
                    key,
                    value: Box::new(Shape::parse(value, true)?),
                })
            } else {
                Err(ShapeError::Each)
            }
        }
        _ => Err(ShapeError::List),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scope::tests::with_scope;

    fn render(value: Value) -> Option<Value> {
        let shape = Shape::parse(value, false).unwrap();
        with_scope(|scope| shape.render(scope))
    }

    #[test]
    fn values_and_loops_are_filled_in() {
        let shape = json!({
            "id": "${instance-id}", "none": "${vendor-data}", "is": true, "n": [1, "${hostname}"],
            "keys": { "each": "public-keys", "key": "${item.name}", "value": "${item.key}" },
            "nics": { "each": "nics", "value": { "mac": "${item.mac}", "ip": "${item.ipv4}" } },
        });
        let expected = json!({
            "id": "i-1", "is": true, "n": [1, "guest"],
            "keys": { "key-0": "ssh-rsa A a", "key-1": "ssh-rsa B b" },
            "nics": [{ "mac": "00:16:3e:00:00:01" }],
        });
        assert_eq!(render(shape), Some(expected));
        assert_eq!(render(json!("${vendor-data}")), None);
    }

    #[test]
    fn a_value_cannot_change_the_shape() {
        let text = "\"}, {\"";
        let shape = json!({ "a": format!("{text}${{hostname}}") });
        assert_eq!(render(shape), Some(json!({ "a": format!("{text}guest") })));
    }

    #[test]
    fn nonsense_is_refused() {
        for (shape, expected) in [
            (json!({ "each": "disks", "value": "" }), ShapeError::List),
            (json!({ "each": 1, "value": "" }), ShapeError::List),
            (json!({ "each": "nics" }), ShapeError::Each),
            (
                json!({ "each": "nics", "value": 1, "key": 2 }),
                ShapeError::Each,
            ),
            (
                json!({ "each": "nics", "value": 1, "more": 2 }),
                ShapeError::Each,
            ),
            (
                json!(["${item.mac}"]),
                TemplateError::Name("item.mac".to_owned()).into(),
            ),
        ] {
            assert_eq!(Shape::parse(shape.clone(), false), Err(expected), "{shape}");
        }
    }
}
