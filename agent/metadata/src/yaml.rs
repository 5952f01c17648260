//! YAML documents as trees: an image's metadata, an instance's meta-data and Incus's features.
//!
//! Scalars stay text, which the caller interprets. `PyYAML`, which reads the same meta-data in the guest,
//! takes the last of two equal keys, and so does [`Node::get`].

use std::{collections::BTreeMap, sync::Arc};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

pub use saphyr_parser::ScanError as YamlError;

/// Deepest nesting that is accepted. The reader is recursive; a thread's stack is large enough for far
/// more.
const MAX_DEPTH: usize = 64;

/// Most maps that are searched for one key, merged ones included.
const MAX_MERGED: usize = 1000;

/// A node of a document.
#[derive(Debug, PartialEq, Eq)]
pub enum Node {
    /// Text.
    Scalar {
        /// Without quotes and escapes.
        text: String,
        /// Neither quoted nor in a block. Only such text can mean null.
        plain: bool,
    },
    /// Items, in order.
    List(Vec<Arc<Node>>),
    /// Keys and values, in order; a key may occur more than once.
    Map(Vec<(Arc<Node>, Arc<Node>)>),
}

impl Node {
    /// Whether it is null: empty, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar that is not null.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// A boolean, in the spellings of YAML 1.1 (<https://yaml.org/type/bool.html>), which Go's and
    /// Python's readers accept. `None` for everything else.
    pub fn truth(&self) -> Option<bool> {
        match self.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => None,
        }
    }

    /// The items of a list; none for other nodes.
    pub fn items(&self) -> impl Iterator<Item = &Self> {
        let items = match self {
            Self::List(items) => items.as_slice(),
            _ => &[],
        };
        items.iter().map(AsRef::as_ref)
    }

    /// The keys that are text and their values, in order; none for a node that is not a map.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (&str, &Self)> {
        let pairs = match self {
            Self::Map(pairs) => pairs.as_slice(),
            _ => &[],
        };
        pairs
            .iter()
            .filter_map(|(key, value)| Some((key.text()?, value.as_ref())))
    }

    /// The value of a key: the last with that name, or that in a merged map (`<<`).
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.find(key, &mut { MAX_MERGED })
    }

    /// `budget` is how many more maps are searched: aliases can merge one map very often.
    fn find(&self, key: &str, budget: &mut usize) -> Option<&Self> {
        *budget = budget.checked_sub(1)?;
        let own = self.entries().rev().find(|(name, _)| *name == key);
        if let Some((_, value)) = own {
            return Some(value);
        }
        let mut merged = self.entries().filter(|(name, _)| *name == "<<");
        merged.find_map(|(_, map)| match map {
            Self::List(maps) => maps.iter().find_map(|map| map.find(key, budget)),
            _ => map.find(key, budget),
        })
    }
}

/// Parses one document. `None` if the text is empty, or the document is null.
///
/// # Errors
///
/// [`YamlError`] if it is not YAML, nested more than [`MAX_DEPTH`] deep, or has a second document.
pub fn parse(text: &str) -> Result<Option<Node>, YamlError> {
    let mut reader = Reader {
        events: Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)),
        anchors: BTreeMap::new(),
    };
    let mut root = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => {
                // The root is the only reference, when the anchors are dropped.
                reader.anchors.clear();
                return Ok(root
                    .and_then(Arc::into_inner)
                    .filter(|root: &Node| !root.is_null()));
            }
            Event::DocumentStart(_) if root.is_some() => {
                return Err(error(span, "a second document begins"));
            }
            Event::DocumentStart(_) => {
                let (event, span) = reader.next()?;
                root = Some(reader.node(event, span, MAX_DEPTH)?);
            }
            _ => {}
        }
    }
}

fn error(span: Span, what: &str) -> YamlError {
    YamlError::new_str(span.start, what)
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// Nodes with an anchor, by its number. An alias shares the node, so memory is bounded by the length of
    /// the text, even with aliases of aliases.
    anchors: BTreeMap<usize, Arc<Node>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        match self.events.next_event() {
            Some(event) => Ok(event?),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Arc<Node>, YamlError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(error(span, "this is nested too deeply"));
        };
        let (anchor, node) = match event {
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                return node.ok_or_else(|| error(span, "an alias of what it is part of"));
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let text = text.into_owned();
                (anchor, Node::Scalar { text, plain })
            }
            Event::SequenceStart(anchor, _) => (anchor, self.list(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.map(depth)?),
            _ => return Err(error(span, "the document ends too early")),
        };
        let node = Arc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Arc::clone(&node));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Node, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Node::List(items)),
                (event, span) => items.push(self.node(event, span, depth)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Node, YamlError> {
        let mut pairs = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Node::Map(pairs));
            }
            let key = self.node(event, span, depth)?;
            let (event, span) = self.next()?;
            pairs.push((key, self.node(event, span, depth)?));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(text: &str, key: &str) -> Option<String> {
        let root = parse(text).unwrap()?;
        root.get(key)?.text().map(str::to_owned)
    }

    #[test]
    fn a_key_is_found_however_it_is_written() {
        for text in [
            "k: v\n",
            "  k: v\n",
            "\u{feff}k: v\n",
            "--- {k: v}\n",
            "--- # comment\nk: v\n...\n",
            "? k\n: v\n",
            "{\"k\":\"v\"}",
            "a: |\n  k: no\nk: v\n",
            "k: no\nk: v\n",
            "k: &x v\nb: *x\n",
            "a: &x v\nk: *x\n",
            "k: !!str v\n",
            "k: >-\n  v\n",
            "a: &m {k: v}\n<<: *m\n",
            "a: &m {b: c}\n<<: [*m, {k: v}]\n",
        ] {
            assert_eq!(text_of(text, "k").as_deref(), Some("v"), "{text:?}");
        }
        for text in [
            "",
            "# k: v\n",
            "a: {k: v}\n",
            "k: null\n",
            "k:\n",
            "k: [v]\n",
            "- k\n",
        ] {
            assert_eq!(text_of(text, "k"), None, "{text:?}");
        }
        assert_eq!(text_of("k: 'null'\n", "k").as_deref(), Some("null"));
    }

    #[test]
    fn block_and_quoted_scalars_have_their_lines() {
        assert_eq!(text_of("k: |\n  a\n  b\n", "k").unwrap(), "a\nb\n");
        assert_eq!(text_of("k: >-\n  a\n  b\n", "k").unwrap(), "a b");
        assert_eq!(text_of("k: \"a\\x41\\u00e9\"", "k").unwrap(), "aAé");
        assert_eq!(text_of("k: a#b # c", "k").unwrap(), "a#b");
    }

    #[test]
    fn truth_has_the_words_of_yaml_1_1() {
        let truth = |text| parse(text).unwrap().unwrap().truth();
        for word in ["true", "Yes", "ON", "y"] {
            assert_eq!(truth(word), Some(true), "{word}");
        }
        for word in ["false", "no", "Off", "N"] {
            assert_eq!(truth(word), Some(false), "{word}");
        }
        for word in ["1", "maybe", "[true]"] {
            assert_eq!(truth(word), None, "{word}");
        }
    }

    #[test]
    fn what_is_not_one_document_is_refused_with_its_line() {
        for (text, line) in [
            ("a: 1\nb: [", 3),
            ("a: b: c\n", 1),
            ("a: 1\n---\nb: 2\n", 2),
            ("a: &x [*x]\n", 1),
            ("a: *x\n", 1),
            ("k:\n  a: 1\n  nothing\n", 4),
        ] {
            assert_eq!(parse(text).unwrap_err().marker().line(), line, "{text}");
        }
    }

    #[test]
    fn depth_and_aliases_are_bounded() {
        for [open, close] in [["[", "]"], ["{a: ", "}"]] {
            let deep = open.repeat(10_000) + &close.repeat(10_000);
            parse(&deep).unwrap_err();
        }
        let mut text = "a0: &a0 [x]\n".to_owned();
        for n in 1..60 {
            let before = n - 1;
            text += &format!("a{n}: &a{n} [*a{before}, *a{before}]\n");
        }
        assert_eq!(parse(&text).unwrap().unwrap().entries().count(), 60);
        let merges: String = (1..60)
            .map(|n| format!("a{n}: &a{n} {{<<: [*a{0}, *a{0}]}}\n", n - 1))
            .collect();
        let text = format!("a0: &a0 {{x: 1}}\n{merges}<<: *a59\n");
        let root = parse(&text).unwrap().unwrap();
        assert!(root.get("x").is_some());
        assert!(root.get("y").is_none());
    }
}
