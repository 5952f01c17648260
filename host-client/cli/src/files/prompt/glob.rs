//! Matches the wildcards `*`, `?` and `[…]` on bytes, as `glob(3)` does in the C locale.

use super::line::{Byte, Word};

/// A path with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathPattern {
    /// Whether it starts at the root.
    pub(super) is_absolute: bool,
    pub(super) components: Vec<Component>,
    /// Whether it ends with a slash, so that only directories match.
    pub(super) wants_directory: bool,
}

/// A component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Component {
    /// A name without wildcards.
    Name(Vec<u8>),
    Pattern(Pattern),
}

impl PathPattern {
    /// Parses a word; `None` if it has no wildcards.
    pub(super) fn new(word: &Word) -> Option<Self> {
        let bytes = &word.0;
        let components: Vec<Component> = bytes
            .split(|byte| byte.value == b'/')
            .filter(|name| !name.is_empty())
            .map(Component::new)
            .collect();
        let has_pattern = components
            .iter()
            .any(|component| matches!(component, Component::Pattern(_)));
        has_pattern.then(|| Self {
            is_absolute: bytes.first().is_some_and(|byte| byte.value == b'/'),
            wants_directory: bytes.last().is_some_and(|byte| byte.value == b'/'),
            components,
        })
    }
}

impl Component {
    fn new(name: &[Byte]) -> Self {
        let tokens = tokens(name);
        let is_name = tokens.iter().all(|token| matches!(token, Token::Byte(_)));
        if is_name {
            Self::Name(name.iter().map(|byte| byte.value).collect())
        } else {
            Self::Pattern(Pattern(tokens))
        }
    }
}

/// A name with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Many,
    /// `[a-z]`, `[!a-z]`
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

fn tokens(name: &[Byte]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = name;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let token = match (byte.quoted, byte.value) {
            (false, b'*') => Token::Many,
            (false, b'?') => Token::One,
            (false, b'[') => match class(after) {
                Some((class, after)) => {
                    rest = after;
                    class
                }
                None => Token::Byte(b'['),
            },
            (_, value) => Token::Byte(value),
        };
        if token != Token::Many || tokens.last() != Some(&Token::Many) {
            tokens.push(token);
        }
    }
    tokens
}

/// Parses a class after its `[`. Returns `None` if it has no end, and the bracket is an ordinary byte.
fn class(mut rest: &[Byte]) -> Option<(Token, &[Byte])> {
    let is = |byte: Option<&Byte>, values: &[u8]| {
        byte.is_some_and(|byte| !byte.quoted && values.contains(&byte.value))
    };
    let negated = is(rest.first(), b"!^");
    rest = &rest[usize::from(negated)..];
    let mut ranges = Vec::new();
    // A closing bracket in the first position belongs to the class.
    while ranges.is_empty() || !is(rest.first(), b"]") {
        let low = rest.first()?.value;
        if is(rest.get(1), b"-") && rest.len() > 2 && !is(rest.get(2), b"]") {
            ranges.push((low, rest[2].value));
            rest = &rest[3..];
        } else {
            ranges.push((low, low));
            rest = &rest[1..];
        }
    }
    Some((Token::Class { negated, ranges }, &rest[1..]))
}

impl Pattern {
    /// Whether a name matches. A leading dot matches only a dot.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let tokens = &self.0[..];
        if name.starts_with(b".") && tokens.first() != Some(&Token::Byte(b'.')) {
            return false;
        }
        let (mut token, mut at) = (0, 0);
        // Backtracks to the last star only, so the time is at most quadratic: the token after it, and
        // the first byte that it does not take.
        let mut backtrack: Option<(usize, usize)> = None;
        loop {
            match (tokens.get(token), name.get(at)) {
                (None, None) => return true,
                (Some(Token::Many), _) => {
                    token += 1;
                    backtrack = Some((token, at));
                    continue;
                }
                (Some(one), Some(byte)) if one.matches(*byte) => {
                    token += 1;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            match backtrack {
                Some((after, from)) if from < name.len() => {
                    (token, at) = (after, from + 1);
                    backtrack = Some((token, at));
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    fn matches(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::One => true,
            Self::Many => false,
            Self::Class { negated, ranges } => {
                let is_in = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&byte));
                is_in != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::line::words, *};

    fn matches(pattern: &str, name: impl AsRef<[u8]>) -> bool {
        let word = words(pattern.as_bytes()).unwrap().remove(0);
        match Component::new(&word.0) {
            Component::Pattern(pattern) => pattern.matches(name.as_ref()),
            Component::Name(own) => own == name.as_ref(),
        }
    }

    #[test]
    fn wildcards_match_as_they_do_in_a_shell() {
        for (pattern, name) in [
            ("*", "a"),
            ("a*", "a"),
            ("*b", "ab"),
            ("a*b*c", "a-b-b-c"),
            ("?b", "ab"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[^a]", "b"),
            ("[]a]", "]"),
            ("[a-]", "-"),
            ("[ab", "[ab"),
            (".*", ".x"),
            ("**", "x"),
            (r"[a\]]", "]"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*", ".a"),
            ("?", "."),
            ("[.]a", ".a"),
            ("a*b", "a"),
            ("?", ""),
            ("?", "ab"),
            ("[a-c]", "d"),
            ("[!a]", "a"),
            (r"\*", "a"),
            ("'?'", "a"),
            ("*.txt", "atxt"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn wildcards_match_bytes() {
        assert!(matches("a*", b"a\xff\n"));
        assert!(matches("??", "ü"));
        assert!(matches(r"*$'\xff'", b"a\xff"));
    }

    #[test]
    fn a_pattern_with_many_stars_is_matched_quickly() {
        let name = [b'a'; 255];
        assert!(!matches(&format!("{}b", "a*".repeat(100)), name));
    }

    #[test]
    fn a_path_pattern_has_a_pattern_per_component() {
        let pattern = |line: &str| PathPattern::new(&words(line.as_bytes()).unwrap()[0]);
        assert_eq!(pattern("/a/b"), None);
        assert_eq!(pattern(r"/a/\*"), None);
        let path = pattern("/a//*.x/").unwrap();
        assert!(path.is_absolute && path.wants_directory);
        assert_eq!(path.components.len(), 2);
        assert_eq!(path.components[0], Component::Name(b"a".to_vec()));
        assert!(!pattern("a/*").unwrap().is_absolute);
    }
}
