//! Writes a document in block style.

use std::fmt::Write as _;

use super::{Content, Node};

/// Longest key on one line with its value, in characters (YAML 1.1, section 9.3.1: 1024).
const MAX_SIMPLE_KEY: usize = 512;

impl Node {
    /// Writes the node as a document. Parsing it returns an equal node.
    pub(in crate::instance) fn to_yaml(&self) -> String {
        let mut text = String::new();
        if self.is_block() {
            self.write_block(&mut text, 0);
        } else {
            self.write_inline(&mut text);
            text.push('\n');
        }
        text
    }

    /// Whether it is a collection with entries.
    fn is_block(&self) -> bool {
        match &self.content {
            Content::Sequence(items) => !items.is_empty(),
            Content::Mapping(pairs) => !pairs.is_empty(),
            Content::Scalar { .. } | Content::Alias(_) => false,
        }
    }

    /// Writes each entry of a collection on its own lines.
    fn write_block(&self, text: &mut String, indent: usize) {
        match &self.content {
            Content::Sequence(items) => {
                for item in items {
                    let _ = write!(text, "{:indent$}-", "");
                    item.write_value(text, indent);
                }
            }
            Content::Mapping(pairs) => {
                for (key, value) in pairs {
                    let _ = write!(text, "{:indent$}", "");
                    key.write_key(text, indent);
                    value.write_value(text, indent);
                }
            }
            Content::Scalar { .. } | Content::Alias(_) => {}
        }
    }

    /// Writes a value after `-` or `:`, with its last line feed.
    fn write_value(&self, text: &mut String, indent: usize) {
        text.push(' ');
        if self.is_block() {
            self.write_properties(text);
            text.truncate(text.trim_end().len());
            text.push('\n');
            self.write_block(text, indent + 2);
        } else if let Some(lines) = self.as_lines() {
            self.write_properties(text);
            text.push_str(if lines.ends_with('\n') { "|\n" } else { "|-\n" });
            for line in lines.lines() {
                let indent = if line.is_empty() { 0 } else { indent + 2 };
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        } else {
            self.write_inline(text);
            text.push('\n');
        }
    }

    /// The text if it can be a literal block: it has several lines, no leading white space, at most one
    /// trailing line feed, and no characters that need an escape.
    fn as_lines(&self) -> Option<&str> {
        let text = self.as_text().filter(|text| text.contains('\n'))?;
        let body = text.strip_suffix('\n').unwrap_or(text);
        let fits = !text.starts_with(char::is_whitespace)
            && !body.ends_with('\n')
            && text
                .chars()
                .all(|c| matches!(c, '\n' | '\t') || needs_no_escape(c));
        fits.then_some(text)
    }

    fn write_key(&self, text: &mut String, indent: usize) {
        let mut key = String::new();
        self.write_inline(&mut key);
        let _ = if key.chars().count() > MAX_SIMPLE_KEY {
            write!(text, "? {key}\n{:indent$}:", "")
        } else if self.is_alias() {
            // A colon may be part of an anchor's name.
            write!(text, "{key} :")
        } else {
            write!(text, "{key}:")
        };
    }

    fn write_inline(&self, text: &mut String) {
        self.write_properties(text);
        match &self.content {
            Content::Alias(anchor) => {
                let _ = write!(text, "*a{anchor}");
            }
            Content::Sequence(_) => text.push_str("[]"),
            Content::Mapping(_) => text.push_str("{}"),
            Content::Scalar {
                text: scalar,
                plain,
            } => {
                if !plain || scalar.contains('\n') {
                    quote(scalar, text);
                } else if scalar.is_empty() {
                    text.push('~');
                } else {
                    text.push_str(scalar);
                }
            }
        }
    }

    fn write_properties(&self, text: &mut String) {
        if self.anchor != 0 {
            let _ = write!(text, "&a{} ", self.anchor);
        }
        if let Some(tag) = &self.tag {
            let _ = write!(text, "!<{tag}> ");
        }
    }
}

/// Whether a character has no special meaning in YAML and on a terminal.
const fn needs_no_escape(character: char) -> bool {
    matches!(character, ' '..='~' | '\u{a1}'..='\u{2027}' | '\u{202f}'..='\u{fefe}' | '\u{10000}'..)
}

/// Writes a scalar in double quotes, with the escapes of YAML 1.1 (section 5.6).
fn quote(scalar: &str, text: &mut String) {
    text.push('"');
    for character in scalar.chars() {
        let _ = match character {
            '"' | '\\' => write!(text, "\\{character}"),
            '\n' => write!(text, "\\n"),
            '\t' => write!(text, "\\t"),
            other if needs_no_escape(other) => write!(text, "{other}"),
            other => write!(text, "\\u{:04x}", u32::from(other)),
        };
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::{Content, Node, parse};

    /// Normalizes what writing changes: an empty scalar to `~`, and a plain scalar of several lines to
    /// a quoted one.
    fn meaning(node: &Node) -> Node {
        let content = match &node.content {
            Content::Scalar { text, plain: true } if text.is_empty() => Content::Scalar {
                text: "~".to_owned(),
                plain: true,
            },
            Content::Scalar { text, plain } => Content::Scalar {
                text: text.clone(),
                plain: *plain && !text.contains('\n'),
            },
            Content::Sequence(items) => Content::Sequence(items.iter().map(meaning).collect()),
            Content::Mapping(pairs) => Content::Mapping(
                pairs
                    .iter()
                    .map(|(k, v)| (meaning(k), meaning(v)))
                    .collect(),
            ),
            Content::Alias(anchor) => Content::Alias(*anchor),
        };
        Node {
            content,
            ..node.clone()
        }
    }

    #[test]
    fn written_yaml_is_parsed_to_the_same_node() {
        for text in [
            "a: yes\nb: 'yes'\nc: \"1\"\nd: 1.0\ne:\nf: ~\n",
            "runcmd:\n- [sh, -c, \"echo 'a: b' # c\"]\n- - x\n  - {}\n  - []\n- |\n  two\n  lines\n",
            "base: &b {x: 1, y: [a, 'b, c']}\nnext:\n  <<: *b\n  z: *b\n",
            "plain: this is\n  folded\n\n  twice\nfold: >-\n  a\n  b\n",
            "bin: !!binary aGk=\nown: !!set {a, b}\nstr: !!str 12\n",
            "- a: 1\n  b:\n    - c\n-\n  - d\n- url: http://x/y?a=b#c\n",
            "grün: \"€\\u0085\\x07\\ttab\"\n\"a: b\": c\n'#d': e\n~: nothing\n",
            "{a: {b: c}, d: e}\n",
            "a: \"x\\n y\\n\\nz\\n\"\nb:\n- \"x\\ny\"\n- \"x\\n\\n\"\n- \" x\\n\"\n- |\n  #!/bin/sh\n  \tx: #y  \n",
            "just text\n",
            "[]\n",
        ] {
            let read = parse(text).unwrap().unwrap();
            let written = read.to_yaml();
            let again = parse(&written).unwrap_or_else(|e| panic!("{e}\n{written}"));
            assert_eq!(meaning(&again.unwrap()), meaning(&read), "{written}");
        }
    }

    #[test]
    fn a_key_too_long_for_one_line_is_still_a_key() {
        let text = format!("? {}\n: b\n", "k".repeat(2000));
        let written = parse(&text).unwrap().unwrap().to_yaml();
        assert!(written.starts_with("? "), "{written}");
        assert_eq!(parse(&written), parse(&text));
    }
}
