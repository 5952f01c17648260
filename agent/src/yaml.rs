//! As much YAML as an image's metadata, an instance's, and Incus's switches have: maps, lists and
//! scalars, in blocks and in braces.
//!
//! One key of a file is read, and the rest only as far as its indentation. Anchors, tags and block
//! scalars are passed over, for nothing of interest is one, and so are lists of lists and of maps.

use std::iter::Peekable;

/// How deep maps and lists may be in each other: far deeper than any image's are.
const MAX_DEPTH: usize = 32;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A scalar, whatever its type.
    Text(String),
    Map(Vec<(String, Node)>),
    /// A list of scalars.
    List(Vec<String>),
    /// Something else.
    Other,
}

impl Node {
    /// Whether it is what `key:` without more says.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self, Self::Text(text) if matches!(text.as_str(), "" | "~" | "null"))
    }
}

/// Text that is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {0} is not understood, or what begins there has no end")]
pub struct YamlError(usize);

/// The value of a key of the whole file, the last if there are several. `None` if it is not there.
///
/// # Errors
///
/// [`YamlError`], with the line.
pub(crate) fn value_of(text: &str, key: &str) -> Result<Option<Node>, YamlError> {
    let mut lines: Lines<'_> = lines(text).peekable();
    if let Some(first) = lines.next_if(|line| line.text.starts_with('{')) {
        let Node::Map(map) = value(first, first.text, &mut lines, MAX_DEPTH)? else {
            return Ok(None);
        };
        return Ok(map
            .into_iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value));
    }
    let mut found = None;
    while let Some(line) = lines.next() {
        match split_key(line) {
            Some((name, rest)) if line.indent == 0 && name == key => {
                found = Some(value(line, rest, &mut lines, MAX_DEPTH)?);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The words for true in YAML 1.1, which the hosts' parser takes.
pub(crate) fn is_true(text: &str) -> bool {
    ["true", "yes", "on", "y"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

/// A line with something on it.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

impl Line<'_> {
    fn is_item(&self) -> bool {
        self.text == "-" || self.text.starts_with("- ")
    }

    fn wrong(&self) -> YamlError {
        YamlError(self.number)
    }
}

type Lines<'a> = Peekable<Box<dyn Iterator<Item = Line<'a>> + 'a>>;

fn lines<'a>(text: &'a str) -> Box<dyn Iterator<Item = Line<'a>> + 'a> {
    Box::new(text.lines().enumerate().filter_map(|(number, line)| {
        let text = line.trim_start_matches(' ');
        let indent = line.len() - text.len();
        let text = text.trim_end();
        let says_something = !text.is_empty() && !text.starts_with('#') && text != "---";
        says_something.then_some(Line {
            number: number + 1,
            indent,
            text,
        })
    }))
}

/// The lines of a map that is as deep as its first one.
fn block(lines: &mut Lines<'_>, indent: usize, depth: usize) -> Result<Node, YamlError> {
    let mut map = Vec::new();
    while let Some(line) = lines.next_if(|line| line.indent >= indent) {
        let (key, rest) = split_key(line)
            .filter(|_| line.indent == indent)
            .ok_or(line.wrong())?;
        map.push((key, value(line, rest, lines, depth)?));
    }
    Ok(Node::Map(map))
}

/// What follows a key: on its line and those that belong to it.
fn value(
    line: Line<'_>,
    rest: &str,
    lines: &mut Lines<'_>,
    depth: usize,
) -> Result<Node, YamlError> {
    let depth = depth.checked_sub(1).ok_or(line.wrong())?;
    let rest = rest.trim_start();
    let node = match rest.chars().next() {
        None | Some('#') => {
            let deeper = |next: &&Line<'_>| next.indent > line.indent && !next.is_item();
            match lines.peek().filter(deeper).map(|next| next.indent) {
                Some(indent) => return block(lines, indent, depth),
                None => items(line, lines),
            }
        }
        Some('{' | '[' | '"' | '\'') => {
            let mut text = rest.to_owned();
            loop {
                match Flow(&text).whole(depth) {
                    Ok(node) => break node,
                    Err(Stop::Wrong) => return Err(line.wrong()),
                    Err(Stop::Unfinished) => {
                        text.push('\n');
                        text.push_str(lines.next().ok_or(line.wrong())?.text);
                    }
                }
            }
        }
        Some('|' | '>' | '&' | '*' | '!') => Node::Other,
        Some(_) => Node::Text(plain(rest)),
    };
    // Of lists, block scalars and the like, only the end is of interest.
    let belongs = |next: &Line<'_>| {
        next.indent > line.indent || (next.indent == line.indent && next.is_item())
    };
    let mut is_other = false;
    while lines.next_if(belongs).is_some() {
        is_other = true;
    }
    Ok(if is_other { Node::Other } else { node })
}

/// The scalars of a list in the lines that follow, each on one of its own. Where it ends is the
/// caller's to find.
fn items(line: Line<'_>, lines: &mut Lines<'_>) -> Node {
    let mut items = Vec::new();
    let is_item = |next: &Line<'_>| next.is_item() && next.indent >= line.indent;
    while let Some(item) = lines.next_if(is_item) {
        let goes_on = lines.peek().is_some_and(|next| next.indent > item.indent);
        match scalar(item).filter(|_| !goes_on) {
            Some(text) => items.push(text),
            None => return Node::Other,
        }
    }
    match items.is_empty() {
        true => Node::Text(String::new()),
        false => Node::List(items),
    }
}

/// What a line has behind the dash of an item, if it is a scalar that ends there.
fn scalar(item: Line<'_>) -> Option<String> {
    let text = item.text.trim_start_matches('-').trim_start();
    let inner = Line { text, ..item };
    match text.chars().next() {
        Some('"' | '\'') => match Flow(text).whole(1) {
            Ok(Node::Text(text)) => Some(text),
            _ => None,
        },
        None | Some('{' | '[' | '|' | '>' | '&' | '*' | '!') => None,
        Some(_) if inner.is_item() || split_key(inner).is_some() => None,
        Some(_) => Some(plain(text)),
    }
}

/// A scalar without quotes, without the comment behind it.
fn plain(text: &str) -> String {
    let text = text.split(" #").next().unwrap_or(text);
    text.trim_end().to_owned()
}

/// A key and what follows its colon.
fn split_key(line: Line<'_>) -> Option<(String, &str)> {
    if line.text.starts_with(['"', '\'']) {
        let mut flow = Flow(line.text);
        let key = flow.quoted().ok()?;
        let rest = flow.0.trim_start().strip_prefix(':')?;
        return Some((key, rest));
    }
    let (key, rest) = match line.text.split_once(": ") {
        Some(parts) => parts,
        None => (line.text.strip_suffix(':')?, ""),
    };
    let is_plain = !key.starts_with(['?', '-', '{', '[', '&', '*', '!', '|', '>', '%', '@', '`']);
    is_plain.then(|| (key.trim_end().to_owned(), rest))
}

/// Why a value has no end here.
enum Stop {
    /// It may have one further on.
    Unfinished,
    /// It cannot have one.
    Wrong,
}

/// What is left of a value in braces, brackets or quotes.
struct Flow<'a>(&'a str);

impl Flow<'_> {
    /// The value, if nothing but a comment follows.
    fn whole(mut self, depth: usize) -> Result<Node, Stop> {
        let node = self.node(depth)?;
        match self.peek() {
            Err(Stop::Unfinished) => Ok(node),
            _ => Err(Stop::Wrong),
        }
    }

    fn node(&mut self, depth: usize) -> Result<Node, Stop> {
        let depth = depth.checked_sub(1).ok_or(Stop::Wrong)?;
        match self.peek()? {
            '{' => self.map(depth),
            '[' => {
                self.0 = &self.0[1..];
                let mut items = Some(Vec::new());
                while self.peek()? != ']' {
                    match (self.node(depth)?, &mut items) {
                        (Node::Text(text), Some(items)) => items.push(text),
                        _ => items = None,
                    }
                    self.comma(']')?;
                }
                self.0 = &self.0[1..];
                Ok(items.map_or(Node::Other, Node::List))
            }
            _ => self.scalar(),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Node, Stop> {
        self.0 = &self.0[1..];
        let mut map = Vec::new();
        while self.peek()? != '}' {
            let Node::Text(key) = self.scalar()? else {
                return Err(Stop::Wrong);
            };
            let mut value = Node::Text(String::new());
            if self.peek()? == ':' {
                self.0 = &self.0[1..];
                if !matches!(self.peek()?, ',' | '}') {
                    value = self.node(depth)?;
                }
            }
            map.push((key, value));
            self.comma('}')?;
        }
        self.0 = &self.0[1..];
        Ok(Node::Map(map))
    }

    /// The next character that is no space and in no comment. Stays before it.
    fn peek(&mut self) -> Result<char, Stop> {
        self.0 = self.0.trim_start();
        while self.0.starts_with('#') {
            let (_, rest) = self.0.split_once('\n').ok_or(Stop::Unfinished)?;
            self.0 = rest.trim_start();
        }
        self.0.chars().next().ok_or(Stop::Unfinished)
    }

    /// Takes a comma, if this is not the end.
    fn comma(&mut self, end: char) -> Result<(), Stop> {
        match self.peek()? {
            ',' => self.0 = &self.0[1..],
            next if next == end => {}
            _ => return Err(Stop::Wrong),
        }
        Ok(())
    }

    fn scalar(&mut self) -> Result<Node, Stop> {
        if matches!(self.peek()?, '"' | '\'') {
            return self.quoted().map(Node::Text);
        }
        let mut before = ' ';
        let end = self.0.char_indices().find_map(|(at, character)| {
            let rest = &self.0[at + character.len_utf8()..];
            let is_colon = character == ':' && rest.starts_with([' ', '\n', ',', '}', ']']);
            let is_comment = character == '#' && before.is_whitespace();
            before = character;
            let is_end = is_colon || is_comment || matches!(character, ',' | '[' | ']' | '{' | '}');
            is_end.then_some(at)
        });
        let (text, rest) = self.0.split_at(end.ok_or(Stop::Unfinished)?);
        if text.is_empty() {
            return Err(Stop::Wrong);
        }
        self.0 = rest;
        Ok(match text.starts_with(['&', '*', '!']) {
            true => Node::Other,
            false => Node::Text(text.trim_end().to_owned()),
        })
    }

    fn quoted(&mut self) -> Result<String, Stop> {
        let mut characters = self.0.chars();
        let quote = characters.next().ok_or(Stop::Unfinished)?;
        let mut text = String::new();
        loop {
            let character = characters.next().ok_or(Stop::Unfinished)?;
            if character == quote {
                // In single quotes two of them are one.
                if quote == '\'' && characters.as_str().starts_with(quote) {
                    characters.next();
                    text.push(quote);
                    continue;
                }
                self.0 = characters.as_str();
                return Ok(text);
            }
            if quote == '"' && character == '\\' {
                let escaped = characters.next().ok_or(Stop::Unfinished)?;
                let digits = match escaped {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                text.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '0' => '\0',
                    'x' | 'u' | 'U' => {
                        let code: String = characters.by_ref().take(digits).collect();
                        let code = u32::from_str_radix(&code, 16).map_err(|_| Stop::Wrong)?;
                        char::from_u32(code).ok_or(Stop::Wrong)?
                    }
                    other => other,
                });
                continue;
            }
            // A line that goes on is one with the next.
            text.push(if character == '\n' { ' ' } else { character });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Node {
        Node::Text(text.to_owned())
    }

    fn map<const N: usize>(entries: [(&str, Node); N]) -> Node {
        let entries = entries.map(|(key, value)| (key.to_owned(), value));
        Node::Map(entries.to_vec())
    }

    fn k(text: &str) -> Result<Option<Node>, YamlError> {
        value_of(text, "k")
    }

    #[test]
    fn a_key_is_found_among_all_kinds_of_others() {
        let file = "---\n# k: no\na: |\n  k: no\nb: >-\n  folded\n  k: no\nc:\n- k: no\n- x\nd: &x {k: no}\n\
                    e: 'it''s\n  long'\nf: [1,\n  2\n]\n? odd\n: k\n\"k\":   # yes\n    g: 1\n    h: \"two\"\nl: 3\n";
        let expected = map([("g", text("1")), ("h", text("two"))]);
        assert_eq!(k(file), Ok(Some(expected)));
        assert_eq!(k("a: 1\n b: 2\n"), Ok(None));
        assert_eq!(k(""), Ok(None));
    }

    #[test]
    fn scalars_are_text() {
        for (file, expected) in [
            ("k: a b # c", "a b"),
            ("k: a#b", "a#b"),
            ("k: http://x:1/", "http://x:1/"),
            ("k: ''", ""),
            ("k:", ""),
            ("k: 'it''s'  # so", "it's"),
            (r#"k: "a\t\"b\\ \u00e9\x41 # c""#, "a\t\"b\\ éA # c"),
            ("k: \"over\n  two\"", "over two"),
            ("k: 'é'\r\n", "é"),
        ] {
            assert_eq!(k(file), Ok(Some(text(expected))), "{file}");
        }
    }

    #[test]
    fn blocks_and_braces_may_be_in_each_other() {
        let file = "k:\n  a:\n    b: {c: d, 'e': [1, {f: 2}], g: , h}\n    i:\n    - j\n    - l: m\n  n: o\n";
        let inner = map([
            ("c", text("d")),
            ("e", Node::Other),
            ("g", text("")),
            ("h", text("")),
        ]);
        let expected = map([
            ("a", map([("b", inner), ("i", Node::Other)])),
            ("n", text("o")),
        ]);
        assert_eq!(k(file), Ok(Some(expected)));
        let json = "{\"a\":[1,2],\n \"k\":{\"b\":true,\"c\":\"d:e\"}}\n";
        let expected = map([("b", text("true")), ("c", text("d:e"))]);
        assert_eq!(k(json), Ok(Some(expected)));
        let several = "k: { # one\n  a: 1, # two, }\n  b: 2 }\n";
        assert_eq!(
            k(several),
            Ok(Some(map([("a", text("1")), ("b", text("2"))])))
        );
    }

    #[test]
    fn lists_of_scalars_are_read_and_others_passed_over() {
        let list = |items: &[&str]| Node::List(items.iter().map(ToString::to_string).collect());
        for (file, expected) in [
            ("k:\n- a b # c\n- 'it''s'\nl: 1\n", list(&["a b", "it's"])),
            (
                "k:\n    - ssh-rsa AAAA= x@y\n",
                list(&["ssh-rsa AAAA= x@y"]),
            ),
            ("k: [a, \"b, c\",\n  d]\n", list(&["a", "b, c", "d"])),
            ("k: []\n", list(&[])),
            ("k:\n- a: b\n- c\n", Node::Other),
            ("k:\n- a\n- - c\n", Node::Other),
            ("k:\n- a\n  b\n- c\n", Node::Other),
            ("k:\n- |\n  a\n", Node::Other),
            ("k: [a, [b]]\n", Node::Other),
            ("k: 1\nk:\n- a\n", list(&["a"])),
            ("k:\n- a\nk: 1\n", text("1")),
        ] {
            assert_eq!(k(file), Ok(Some(expected)), "{file}");
        }
    }

    #[test]
    fn what_has_no_end_or_no_key_is_refused_with_its_line() {
        for (file, line) in [
            ("k: {a: 1", 1),
            ("a: 1\nk: 'b", 2),
            ("k: {a: 1} b", 1),
            ("k: [}]", 1),
            ("k:\n  a: 1\n  nothing\n", 3),
            ("k:\n  ? a\n  : b\n", 2),
            ("k:\n  a:\n      b: 1\n    c: 2\n", 4),
            (r#"k: "\uD800""#, 1),
        ] {
            assert_eq!(k(file), Err(YamlError(line)), "{file}");
        }
    }

    #[test]
    fn nothing_is_too_deep() {
        for [open, close] in [["[", "]"], ["{a: ", "}"]] {
            let deep = open.repeat(100_000) + &close.repeat(100_000);
            assert_eq!(k(&format!("k: {deep}")), Err(YamlError(1)));
        }
        let deep: String = (0..1000).map(|depth| " ".repeat(depth) + "k:\n").collect();
        assert!(k(&deep).is_err());
    }
}
