//! YAML as far as cloud-init's texts need it: is it a mapping, and write it again with more in it.
//!
//! What is written again keeps each scalar as it was meant: one without quotes stays without, so
//! `yes` is still what cloud-init's reader (YAML 1.1) takes it for. Comments and layout are lost.

mod write;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Deepest nesting. Cloud-init's own reader ends at Python's recursion limit; nobody writes this.
const MAX_DEPTH: usize = 64;

/// What cannot be read as YAML, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct YamlError {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What is wrong there.
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

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        let at = error.marker();
        Self::new(at.line(), at.col() + 1, error.info())
    }
}

/// A node of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    /// Number of its anchor, or 0.
    anchor: usize,
    /// Its tag as a whole, if it has one.
    tag: Option<String>,
    pub(super) content: Content,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// Text, and whether it had no quotes: then it may mean a number, a truth value or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
    /// The node with the anchor of that number.
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

    /// Text that means itself, whatever it looks like.
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

    /// Whether it is nothing: left out, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, plain: true }
            if matches!(&text[..], "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The same once more. Anchors stay with the first.
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

/// Reads a text of one document. `None` when it has nothing but comments.
///
/// # Errors
///
/// [`YamlError`], also for what cloud-init's reader refuses though it is YAML: a second document,
/// a key that is not a scalar, a character that does not print.
pub(super) fn parse(text: &str) -> Result<Option<Node>, YamlError> {
    check_characters(text)?;
    let mut reader = Reader {
        events: Parser::new_from_str(text),
    };
    let mut root = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => return Ok(root.filter(|root: &Node| !root.is_null())),
            Event::DocumentStart(_) if root.is_some() => {
                return Err(at(span, "a second document begins; there may be one"));
            }
            Event::DocumentStart(_) => {
                let (event, span) = reader.next()?;
                root = Some(reader.node(event, span, 0)?);
            }
            _ => {}
        }
    }
}

/// The characters that YAML 1.1 allows (`c-printable`), which is what `PyYAML` checks first.
fn check_characters(text: &str) -> Result<(), YamlError> {
    let prints = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..);
    for (number, line) in text.split('\n').enumerate() {
        if let Some(column) = line.chars().position(|c| !prints(c)) {
            let what = "a character that may not be in YAML";
            return Err(YamlError::new(number + 1, column + 1, what));
        }
    }
    Ok(())
}

fn at(span: Span, what: &str) -> YamlError {
    YamlError::new(span.start.line(), span.start.col() + 1, what)
}

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        match self.events.next_event() {
            Some(event) => Ok(event?),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, YamlError> {
        if depth > MAX_DEPTH {
            return Err(at(span, "this is nested too deeply"));
        }
        let (anchor, tag, content) = match event {
            Event::Alias(anchor) => (0, None, Content::Alias(anchor)),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let text = text.into_owned();
                (anchor, tag, Content::Scalar { text, plain })
            }
            Event::SequenceStart(anchor, tag) => (anchor, tag, self.sequence(depth)?),
            Event::MappingStart(anchor, tag) => (anchor, tag, self.mapping(depth)?),
            _ => return Err(at(span, "the document ends too early")),
        };
        let tag = tag.map(|tag| format!("{}{}", tag.handle, tag.suffix));
        Ok(Node {
            anchor,
            tag,
            content,
        })
    }

    fn sequence(&mut self, depth: usize) -> Result<Content, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Content::Sequence(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Content, YamlError> {
        let mut pairs = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Content::Mapping(pairs));
            }
            let key = self.node(event, span, depth + 1)?;
            if matches!(key.content, Content::Sequence(_) | Content::Mapping(_)) {
                return Err(at(span, "a key is a list or a mapping"));
            }
            let (event, span) = self.next()?;
            pairs.push((key, self.node(event, span, depth + 1)?));
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
    fn what_is_wrong_has_a_place() {
        assert!(refused("a: b\nc: [d").0 > 1);
        assert_eq!(refused("a: b\nc: d: e\n"), (2, 5));
        assert_eq!(refused("a: b\nc: \u{7}\n"), (2, 4));
        assert_eq!(refused("a: 1\n---\nb: 2\n"), (2, 1));
        assert_eq!(refused("a: 1\n? [b]\n: 2\n").0, 2);
        assert_eq!(refused("a: *nobody\n"), (1, 4));
        assert_eq!(refused(&"[".repeat(1000)).0, 1);
    }

    #[test]
    fn a_text_without_content_is_nothing() {
        for text in ["", "\n", "# only this\n", "---\n", "~", "null\n"] {
            assert_eq!(parse(text).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn one_document_with_its_marks_is_read() {
        let root = parse("---\na: 1\n...\n").unwrap().unwrap();
        assert!(matches!(root.content, Content::Mapping(pairs) if pairs.len() == 1));
    }
}
