//! Parses YAML as cloud-init does, which uses `PyYAML` and so YAML 1.1, and writes it.
//!
//! libyaml parses nearly the same language. [`dialect`] finds text that libyaml accepts and `PyYAML`
//! refuses; [`python`] finds values that `PyYAML` cannot construct. A test compares the result with
//! `PyYAML` (`tests/peers/yaml.rs`).
//!
//! Writing a parsed text keeps the type of each scalar: a plain scalar stays plain, so `yes` is still a
//! boolean. Comments and layout are lost.

mod dialect;
mod libyaml;
mod python;
mod write;

use std::collections::HashMap;

use self::libyaml::{Event, Mark, Parser, Properties, Start};

/// Deepest nesting. The limit of cloud-init's reader is Python's recursion limit.
const MAX_DEPTH: usize = 64;

/// A syntax error with its position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct YamlError {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// The error.
    pub what: String,
}

impl YamlError {
    pub(super) fn new(line: usize, column: usize, what: impl Into<String>) -> Self {
        Self {
            line,
            column,
            what: what.into(),
        }
    }
}

/// A node of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Number of its anchor; 0 without one.
    anchor: usize,
    /// Its complete tag.
    tag: Option<String>,
    pub(super) content: Content,
}

/// The content of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Text. A plain scalar, which has no quotes, may be a number, a boolean or null.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
    /// The number of an anchor.
    Alias(usize),
}

impl Node {
    pub(super) const fn new(content: Content) -> Self {
        Self {
            anchor: 0,
            tag: None,
            content,
        }
    }

    /// A string.
    pub(super) fn text(text: &str) -> Self {
        Self::new(Content::Scalar {
            text: text.to_owned(),
            plain: false,
        })
    }

    /// The text of a scalar.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether it is null: empty, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        self.has_no_tag()
            && matches!(&self.content, Content::Scalar { text, plain: true }
            if matches!(&text[..], "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Whether its type depends on its form: without a tag, or with the tag `!`.
    fn has_no_tag(&self) -> bool {
        self.tag.as_deref().is_none_or(|tag| tag == "!")
    }

    /// Whether it is a mapping that is a dictionary in Python.
    pub(super) fn is_mapping(&self) -> bool {
        let is_map = self.tag.as_deref().is_none_or(|tag| tag.ends_with(":map"));
        is_map && matches!(self.content, Content::Mapping(_))
    }

    /// The keys and values of a mapping. Empty for other nodes.
    pub(super) fn pairs(&self) -> &[(Self, Self)] {
        match &self.content {
            Content::Mapping(pairs) => pairs,
            _ => &[],
        }
    }

    /// The value of a key; the last one of duplicate keys. Does not search merged mappings.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let mut pairs = self.pairs().iter().rev();
        pairs
            .find(|(name, _)| name.as_text() == Some(key))
            .map(|(_, value)| value)
    }

    pub(super) const fn is_alias(&self) -> bool {
        matches!(self.content, Content::Alias(_))
    }

    /// A copy without anchors.
    pub(super) fn copy(&self) -> Self {
        let content = match &self.content {
            Content::Sequence(items) => Content::Sequence(items.iter().map(Self::copy).collect()),
            Content::Mapping(pairs) => {
                Content::Mapping(pairs.iter().map(|(k, v)| (k.copy(), v.copy())).collect())
            }
            other => other.clone(),
        };
        Self {
            anchor: 0,
            tag: self.tag.clone(),
            content,
        }
    }
}

/// Parses a text of one document. Returns `None` if it is null or has no content.
///
/// # Errors
///
/// [`YamlError`], also for YAML that cloud-init refuses: a second document, a key that is not a scalar,
/// a control character, a date that does not exist.
pub(super) fn parse(text: &str) -> Result<Option<Node>, YamlError> {
    dialect::check_characters(text)?;
    let mut reader = Reader {
        events: Parser::new(text),
        anchors: HashMap::new(),
        nodes: Vec::new(),
    };
    let mut root = None;
    loop {
        let (event, mark) = reader.events.event()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart if root.is_some() => {
                return Err(mark.error("a second document begins; only one is allowed"));
            }
            Event::DocumentStart => {
                let (event, mark) = reader.events.event()?;
                root = Some(reader.node(event, mark, 0, false)?);
            }
            _ => {}
        }
    }
    dialect::check(text)?;
    Ok(root.filter(|root: &Node| !root.is_null()))
}

struct Reader<'a> {
    events: Parser<'a>,
    /// The number of each anchor, which is its position in `nodes` plus 1.
    anchors: HashMap<String, usize>,
    /// The nodes with anchors; `None` until they are complete.
    nodes: Vec<Option<Node>>,
}

impl Reader<'_> {
    fn node(
        &mut self,
        event: Event,
        mark: Mark,
        depth: usize,
        is_key: bool,
    ) -> Result<Node, YamlError> {
        if depth > MAX_DEPTH {
            return Err(mark.error("this is nested too deeply"));
        }
        let (Properties { anchor, tag }, start) = match event {
            Event::Alias(name) => return self.alias(&name, mark),
            Event::Node(properties, start) => (properties, start),
            _ => return Err(mark.error("the document ends too early")),
        };
        let anchor = self.anchor(anchor, mark)?;
        let content = match start {
            Start::Scalar { text, plain } => Content::Scalar { text, plain },
            _ if is_key => return Err(mark.error("a key is a list or a mapping")),
            Start::Sequence => self.sequence(depth)?,
            Start::Mapping => self.mapping(depth)?,
        };
        let node = Node {
            anchor,
            tag,
            content,
        };
        self.check(&node, mark, is_key)?;
        if let Some(index) = anchor.checked_sub(1) {
            self.nodes[index] = Some(node.clone());
        }
        Ok(node)
    }

    /// Numbers an anchor; 0 without a name.
    fn anchor(&mut self, name: Option<String>, mark: Mark) -> Result<usize, YamlError> {
        let Some(name) = name else {
            return Ok(0);
        };
        let number = self.nodes.len() + 1;
        if self.anchors.insert(name, number).is_some() {
            return Err(mark.error("an anchor with this name already exists"));
        }
        self.nodes.push(None);
        Ok(number)
    }

    fn alias(&self, name: &str, mark: Mark) -> Result<Node, YamlError> {
        let number = self.anchors.get(name).copied();
        let number = number.ok_or_else(|| mark.error("an alias without an anchor before it"))?;
        match self.target(number) {
            Some(_) => Ok(Node::new(Content::Alias(number))),
            None => Err(mark.error("an alias within its own anchor")),
        }
    }

    fn target(&self, number: usize) -> Option<&Node> {
        self.nodes.get(number.checked_sub(1)?)?.as_ref()
    }

    fn resolve<'a>(&'a self, node: &'a Node) -> &'a Node {
        match node.content {
            Content::Alias(number) => self.target(number).unwrap_or(node),
            _ => node,
        }
    }

    /// Checks that `PyYAML` can construct the node.
    fn check(&self, node: &Node, mark: Mark, is_key: bool) -> Result<(), YamlError> {
        if is_key && (node.is_merge() || node.is_value_key()) {
            return Ok(());
        }
        match node.value_problem(&|node| self.resolve(node)) {
            Some(problem) => Err(mark.error(problem)),
            None => Ok(()),
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Content, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.events.event()? {
                (Event::End, _) => return Ok(Content::Sequence(items)),
                (event, mark) => items.push(self.node(event, mark, depth + 1, false)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Content, YamlError> {
        let mut pairs = Vec::new();
        loop {
            let (event, mark) = self.events.event()?;
            if matches!(event, Event::End) {
                return Ok(Content::Mapping(pairs));
            }
            let key = self.node(event, mark, depth + 1, true)?;
            let kind = &self.resolve(&key).content;
            if matches!(kind, Content::Sequence(_) | Content::Mapping(_)) {
                return Err(mark.error("a key is a list or a mapping"));
            }
            let (event, mark) = self.events.event()?;
            pairs.push((key, self.node(event, mark, depth + 1, false)?));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> (usize, usize) {
        let error = parse(text).unwrap_err();
        (error.line, error.column)
    }

    #[test]
    fn yaml_errors_have_a_position() {
        assert!(refused("a: b\nc: [d").0 > 1);
        assert_eq!(refused("a: b\nc: d: e\n"), (2, 5));
        assert_eq!(refused("a: b\n\t\nc: d\n"), (2, 1));
        assert_eq!(refused("a: b\n \t# c\n"), (2, 2));
        assert_eq!(refused("a: b \t# c\n"), (1, 6));
        assert_eq!(refused("? é\n  \t"), (2, 3));
        assert_eq!(refused("a: b\nc: \u{7}\n"), (2, 4));
        assert_eq!(refused("a: 1\n---\nb: 2\n"), (2, 1));
        assert_eq!(refused("a: 1\n? [b]\n: 2\n").0, 2);
        assert_eq!(refused("a: *unknown\n"), (1, 4));
        assert_eq!(refused(&"[".repeat(1000)).0, 1);
    }

    #[test]
    fn yaml_without_content_is_none() {
        for text in ["", "\n", "# only this\n", "---\n", "~", "null\n"] {
            assert_eq!(parse(text).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn a_document_with_markers_is_parsed() {
        let root = parse("---\na: 1\n...\n").unwrap().unwrap();
        assert!(matches!(root.content, Content::Mapping(pairs) if pairs.len() == 1));
    }
}
