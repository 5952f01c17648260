//! Splits a line of the prompt into words, as OpenSSH's `sftp` does (`makeargv`, `sftp.c`), and quotes
//! words.
//!
//! Words are bytes. Quotes and backslashes remove the special meaning of bytes, also of wildcards.
//! There are two differences to OpenSSH: `#` starts a comment only at the start of a word, so that
//! `a#b` is a name, and `$'…'` contains escapes, as in bash: `\xNN`, `\NNN`, `\n`, `\t` and others.

use std::fmt;

use crate::output;

/// One byte of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Byte {
    pub(super) value: u8,
    /// Whether it has no special meaning.
    pub(super) quoted: bool,
}

/// A word without its quotes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word(pub(super) Vec<Byte>);

impl Word {
    /// The bytes, including wildcards.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|byte| byte.value).collect()
    }

    /// Whether it starts with a home directory (`~`).
    pub(super) fn is_home(&self) -> bool {
        let is_tilde = |byte: &Byte| byte.value == b'~' && !byte.quoted;
        self.0.first().is_some_and(is_tilde)
    }

    fn push(&mut self, value: u8, quoted: bool) {
        self.0.push(Byte { value, quoted });
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&output::escape(&self.bytes()))
    }
}

/// Why a line cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("there is a backslash at the end")]
    Backslash,
    #[error(
        "no such escape in $'…': it knows \\xNN, \\NNN, \\\\, \\', \\\", \\n, \\r, \\t, \\a, \\b, \\e, \\f and \\v"
    )]
    Escape,
    #[error("a name cannot hold a NUL byte")]
    Nul,
}

/// A command with its prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefixed<'a> {
    /// `-`: a failure does not end a batch.
    pub(super) ignores_errors: bool,
    /// `@`: a batch does not print the line.
    pub(super) is_silent: bool,
    /// The line without the prefixes.
    pub(super) text: &'a [u8],
}

/// Strips the prefixes of a line.
pub(super) fn prefixed(line: &[u8]) -> Prefixed<'_> {
    // Keeps trailing spaces, which may be quoted.
    let text = line.trim_ascii_start();
    let prefixes = text.iter().take_while(|byte| b"-@".contains(byte)).count();
    let (prefixes, text) = text.split_at(prefixes);
    Prefixed {
        ignores_errors: prefixes.contains(&b'-'),
        is_silent: prefixes.contains(&b'@'),
        text: text.trim_ascii_start(),
    }
}

/// Splits a complete line into words.
pub(super) fn words(line: &[u8]) -> Result<Vec<Word>, LineError> {
    let split = SplitLine::new(line)?;
    match split.open {
        Some(open) if open.quote != Quote::None => Err(LineError::OpenQuote),
        Some(open) if open.is_dangling => Err(LineError::Backslash),
        open => {
            let mut words = split.words;
            words.extend(open.map(|open| open.word));
            Ok(words)
        }
    }
}

/// A style of quoting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quote {
    None,
    Single,
    Double,
    /// `$'…'`
    Dollar,
}

impl Quote {
    const fn mark(self) -> u8 {
        match self {
            Self::Double => b'"',
            _ => b'\'',
        }
    }
}

/// A line, split into words, that may end in an incomplete word.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SplitLine {
    /// The words that are followed by a space.
    pub(super) words: Vec<Word>,
    /// The last word; `None` after a space.
    pub(super) open: Option<OpenWord>,
    /// Whether the line ends in a comment.
    pub(super) is_comment: bool,
}

/// A word at the end of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OpenWord {
    pub(super) word: Word,
    /// The offset in the line of the word with its quote.
    pub(super) start: usize,
    /// The quote that is open.
    pub(super) quote: Quote,
    /// Whether the line ends in an incomplete escape.
    pub(super) is_dangling: bool,
}

impl SplitLine {
    pub(super) fn new(line: &[u8]) -> Result<Self, LineError> {
        let mut split = Self::default();
        let mut at = 0;
        while let Some(&byte) = line.get(at) {
            let quote = split.open.as_ref().map_or(Quote::None, |open| open.quote);
            let rest = &line[at + 1..];
            if quote == Quote::None && is_space(byte) {
                split.words.extend(split.open.take().map(|open| open.word));
                at += 1;
                continue;
            }
            if byte == b'#' && split.open.is_none() {
                split.is_comment = true;
                break;
            }
            let open = split.open.get_or_insert_with(|| OpenWord {
                word: Word::default(),
                start: at,
                quote: Quote::None,
                is_dangling: false,
            });
            at += match quote {
                Quote::None => open.push_unquoted(byte, rest),
                Quote::Single | Quote::Double => open.push_quoted(byte, rest),
                Quote::Dollar => open.push_escaped(byte, rest)?,
            };
        }
        Ok(split)
    }
}

// Each method parses the part that starts with `byte`, and returns its length in bytes.
impl OpenWord {
    fn push_unquoted(&mut self, byte: u8, rest: &[u8]) -> usize {
        match (byte, rest.first()) {
            (b'\\', Some(next)) => {
                self.word.push(*next, true);
                return 2;
            }
            (b'\\', None) => self.is_dangling = true,
            (b'$', Some(b'\'')) => {
                self.quote = Quote::Dollar;
                return 2;
            }
            (b'\'', _) => self.quote = Quote::Single,
            (b'"', _) => self.quote = Quote::Double,
            (byte, _) => self.word.push(byte, false),
        }
        1
    }

    /// In quotes, a backslash escapes only the closing quote.
    fn push_quoted(&mut self, byte: u8, rest: &[u8]) -> usize {
        let mark = self.quote.mark();
        if byte == b'\\' && rest.first() == Some(&mark) {
            self.word.push(mark, true);
            return 2;
        }
        if byte == mark {
            self.quote = Quote::None
        } else {
            self.word.push(byte, true)
        }
        1
    }

    fn push_escaped(&mut self, byte: u8, rest: &[u8]) -> Result<usize, LineError> {
        match byte {
            b'\'' => self.quote = Quote::None,
            b'\\' => match unescape(rest)? {
                Some((value, used)) => {
                    self.word.push(value, true);
                    return Ok(1 + used);
                }
                None => {
                    self.is_dangling = true;
                    return Ok(1 + rest.len());
                }
            },
            byte => self.word.push(byte, true),
        }
        Ok(1)
    }
}

/// Parses an escape after its backslash. Returns the byte and the length of the escape; `None` if the
/// escape is incomplete.
fn unescape(rest: &[u8]) -> Result<Option<(u8, usize)>, LineError> {
    let value = match rest.first() {
        None => return Ok(None),
        Some(b'x') => {
            let parsed = parse_byte(&rest[1..], 16, 2)?;
            return Ok(parsed.map(|(value, length)| (value, length + 1)));
        }
        Some(b'0'..=b'7') => return parse_byte(rest, 8, 3),
        Some(b'n') => b'\n',
        Some(b'r') => b'\r',
        Some(b't') => b'\t',
        Some(b'a') => 0x07,
        Some(b'b') => 0x08,
        Some(b'e') => 0x1b,
        Some(b'f') => 0x0c,
        Some(b'v') => 0x0b,
        Some(same @ (b'\\' | b'\'' | b'"')) => *same,
        Some(_) => return Err(LineError::Escape),
    };
    Ok(Some((value, 1)))
}

/// Parses up to `max` digits as a byte. Returns the byte and the count of digits; `None` if more
/// digits may follow.
fn parse_byte(text: &[u8], radix: u32, max: usize) -> Result<Option<(u8, usize)>, LineError> {
    let digits = text.iter().take(max);
    let digits = digits.map_while(|byte| char::from(*byte).to_digit(radix));
    let (value, count) = digits.fold((0, 0), |(value, count), digit| {
        (value * radix + digit, count + 1)
    });
    if count < max && count == text.len() {
        return Ok(None);
    }
    match u8::try_from(value) {
        Ok(0) if count > 0 => Err(LineError::Nul),
        Ok(value) if count > 0 => Ok(Some((value, count))),
        _ => Err(LineError::Escape),
    }
}

/// As `isspace(3)`.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Quotes bytes as a word. The closing quote is omitted, so that the word can continue. `None` if
/// `quote` cannot represent the bytes.
pub(super) fn quote(bytes: &[u8], quote: Quote) -> Option<String> {
    if quote == Quote::Dollar {
        return Some(dollar(bytes));
    }
    let text = std::str::from_utf8(bytes).ok()?;
    if text != output::escape(bytes) {
        return None;
    }
    let mark = char::from(quote.mark());
    match quote {
        Quote::None => {
            let mut word = String::with_capacity(text.len());
            for (at, character) in text.char_indices() {
                let is_special = " \\\"'*?[$".contains(character);
                if is_special || (at == 0 && "#!~".contains(character)) {
                    word.push('\\');
                }
                word.push(character);
            }
            Some(word)
        }
        // The backslash would escape the closing quote.
        _ if text.ends_with('\\') => None,
        _ => Some(format!(
            "{mark}{}",
            text.replace(mark, &format!("\\{mark}"))
        )),
    }
}

/// Quotes bytes with `$'`.
fn dollar(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let mut encoded = [0; 4];
            let encoded = character.encode_utf8(&mut encoded);
            match character {
                '\\' | '\'' => word.extend(['\\', character]),
                _ if output::escape(encoded.as_bytes()) == *encoded => word.push(character),
                _ => push_hex(&mut word, encoded.as_bytes()),
            }
        }
        push_hex(&mut word, chunk.invalid());
    }
    word
}

fn push_hex(word: &mut String, bytes: &[u8]) {
    for byte in bytes {
        *word += &format!("\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Vec<String> {
        let words = words(line.as_bytes()).unwrap();
        words
            .iter()
            .map(|word| String::from_utf8(word.bytes()).unwrap())
            .collect()
    }

    /// The word, with its unquoted bytes in angle brackets.
    fn marked(line: &str) -> String {
        let words = words(line.as_bytes()).unwrap();
        assert_eq!(words.len(), 1, "{line}");
        let marked = words[0].0.iter().map(|byte| {
            if byte.quoted {
                char::from(byte.value).to_string()
            } else {
                format!("<{}>", char::from(byte.value))
            }
        });
        marked.collect()
    }

    #[test]
    fn a_line_is_split_into_words_as_openssh_does() {
        assert_eq!(split("get  a b\t c\r"), ["get", "a", "b", "c"]);
        assert_eq!(
            split(r#"get "a b" 'c"d' e\ f"#),
            ["get", "a b", "c\"d", "e f"]
        );
        assert_eq!(split(r#"put "" a"b c"d"#), ["put", "", "ab cd"]);
        assert_eq!(split(r#""a\b" "a\"b" 'a\'b'"#), [r"a\b", "a\"b", "a'b"]);
        assert_eq!(split("  "), Vec::<String>::new());
    }

    #[test]
    fn a_comment_starts_at_the_start_of_a_word() {
        assert_eq!(split("ls # all"), ["ls"]);
        assert_eq!(split(r##"ls a#b \# "#x""##), ["ls", "a#b", "#", "#x"]);
    }

    #[test]
    fn quoted_bytes_have_no_special_meaning() {
        assert_eq!(marked("a*"), "<a><*>");
        assert_eq!(marked(r"a\*"), "<a>*");
        assert_eq!(marked("'*'?"), "*<?>");
        assert_eq!(marked("$'*'"), "*");
    }

    #[test]
    fn dollar_quotes_contain_escapes() {
        let words = words(br"$'\xff\x1b\101\n\'' $'a'b $x").unwrap();
        assert_eq!(words[0].bytes(), b"\xff\x1bA\n'");
        assert_eq!(words[1].bytes(), b"ab");
        assert_eq!(words[2].bytes(), b"$x");
    }

    #[test]
    fn incomplete_lines_and_invalid_escapes_are_refused() {
        for line in ["get \"a", "get 'a", "get $'a", r"get $'\x4", r"get 'a\'"] {
            assert_eq!(words(line.as_bytes()), Err(LineError::OpenQuote), "{line}");
        }
        assert_eq!(words(b"get a\\"), Err(LineError::Backslash));
        for line in [r"$'\q'", r"$'\x'", r"$'\777'"] {
            assert_eq!(words(line.as_bytes()), Err(LineError::Escape), "{line}");
        }
        for line in [r"$'\x00'", r"$'\000'"] {
            assert_eq!(words(line.as_bytes()), Err(LineError::Nul), "{line}");
        }
    }

    #[test]
    fn prefixes_of_a_command_are_stripped() {
        let line = prefixed(b"  -@ rm -r a");
        assert!(line.ignores_errors && line.is_silent);
        assert_eq!(line.text, b"rm -r a");
        let line = prefixed(b"ls -l");
        assert!(!line.ignores_errors && !line.is_silent);
    }

    #[test]
    fn a_name_can_end_in_a_quoted_space() {
        let line = prefixed(br" get a\  ");
        assert_eq!(words(line.text).unwrap()[1].bytes(), b"a ");
    }

    #[test]
    fn a_quoted_name_is_split_into_the_same_name() {
        let names: [&[u8]; 12] = [
            b"plain",
            b"a b",
            b"*[?",
            b"it's \"it\"",
            b"$'x'",
            b"#c",
            b"!c",
            b"\xff\n\x1b",
            "grün\u{202e}".as_bytes(),
            b"end\\",
            b"blank ",
            b"~root",
        ];
        for name in names {
            for style in [Quote::None, Quote::Single, Quote::Double, Quote::Dollar] {
                let Some(mut typed) = quote(name, style) else {
                    continue;
                };
                if style != Quote::None {
                    typed.push(char::from(style.mark()));
                }
                assert_eq!(output::escape(typed.as_bytes()), typed);
                let words = words(typed.as_bytes()).unwrap();
                assert_eq!(words.len(), 1, "{typed}");
                assert_eq!(words[0].bytes(), name, "{typed}");
                assert!(!words[0].is_home(), "{typed}");
                assert!(
                    words[0]
                        .0
                        .iter()
                        .all(|byte| byte.quoted || !b"*?[".contains(&byte.value))
                );
            }
        }
        assert_eq!(quote(b"\xff", Quote::None), None);
        assert_eq!(quote(b"\n", Quote::Double), None);
    }

    #[test]
    fn an_incomplete_line_has_its_last_word_and_its_offset() {
        let open = |line: &str| SplitLine::new(line.as_bytes()).unwrap().open;
        assert_eq!(open("get "), None);
        let word = open(r#"get a "b c"#).unwrap();
        assert_eq!((word.start, word.quote), (6, Quote::Double));
        assert_eq!(word.word.bytes(), b"b c");
        let word = open(r"get $'a\x4").unwrap();
        assert_eq!((word.word.bytes(), word.is_dangling), (b"a".to_vec(), true));
    }
}
