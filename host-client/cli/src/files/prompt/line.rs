//! A line of the prompt, cut into words as OpenSSH's `sftp` cuts it (`makeargv`, `sftp.c`).
//!
//! Words are bytes. Quotes and backslashes take away the meaning of what they hold, that of
//! wildcards included. Two things differ from OpenSSH: `#` starts a comment at the start of a word
//! only, so that `a#b` is a name, and `$'…'` holds what cannot be typed, as in bash: `\xNN`, `\NNN`,
//! `\n`, `\t` and the like.

use std::fmt;

use crate::output;

/// One byte of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Byte {
    pub(super) value: u8,
    /// Whether it stands for itself.
    pub(super) quoted: bool,
}

/// A word, without its quotes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word(pub(super) Vec<Byte>);

impl Word {
    /// The bytes, wildcards among them as they are.
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

/// Why a line cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("a backslash at the end")]
    Backslash,
    #[error(
        "no such escape in $'…': it knows \\xNN, \\NNN, \\\\, \\', \\\", \\n, \\r, \\t, \\a, \\b, \\e, \\f and \\v"
    )]
    Escape,
    #[error("a name cannot hold a NUL byte")]
    Nul,
}

/// What stands before a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefixed<'a> {
    /// `-`: what fails does not end a batch.
    pub(super) ignores_errors: bool,
    /// `@`: a batch does not show this line.
    pub(super) is_silent: bool,
    /// The command.
    pub(super) text: &'a [u8],
}

/// Takes the marks off a line.
pub(super) fn prefixed(line: &[u8]) -> Prefixed<'_> {
    // Its end stays: a blank there may be a name's.
    let text = line.trim_ascii_start();
    let marks = text.iter().take_while(|byte| b"-@".contains(byte)).count();
    let (marks, text) = text.split_at(marks);
    Prefixed {
        ignores_errors: marks.contains(&b'-'),
        is_silent: marks.contains(&b'@'),
        text: text.trim_ascii_start(),
    }
}

/// The words of a whole line.
pub(super) fn words(line: &[u8]) -> Result<Vec<Word>, LineError> {
    let cut = Cut::new(line)?;
    match cut.open {
        Some(open) if open.quote != Quote::None => Err(LineError::OpenQuote),
        Some(open) if open.is_dangling => Err(LineError::Backslash),
        open => {
            let mut words = cut.words;
            words.extend(open.map(|open| open.word));
            Ok(words)
        }
    }
}

/// The quoting at a position in a line.
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

/// A line that may end in the middle of a word.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// The words that have ended.
    pub(super) words: Vec<Word>,
    /// The word that the line ends in; `None` after a blank.
    pub(super) open: Option<OpenWord>,
    /// Whether the line ends in a comment.
    pub(super) is_comment: bool,
}

/// A word whose end has not come.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OpenWord {
    pub(super) word: Word,
    /// Where it starts in the line, its quote included.
    pub(super) start: usize,
    /// The quote it is in.
    pub(super) quote: Quote,
    /// Whether it ends with the start of an escape.
    pub(super) is_dangling: bool,
}

impl Cut {
    /// Cuts as far as the line goes.
    pub(super) fn new(line: &[u8]) -> Result<Self, LineError> {
        let mut cut = Self::default();
        let mut at = 0;
        while let Some(&byte) = line.get(at) {
            let quote = cut.open.as_ref().map_or(Quote::None, |open| open.quote);
            let rest = &line[at + 1..];
            if quote == Quote::None && is_blank(byte) {
                cut.words.extend(cut.open.take().map(|open| open.word));
                at += 1;
                continue;
            }
            if byte == b'#' && cut.open.is_none() {
                cut.is_comment = true;
                break;
            }
            let open = cut.open.get_or_insert_with(|| OpenWord {
                word: Word::default(),
                start: at,
                quote: Quote::None,
                is_dangling: false,
            });
            at += match quote {
                Quote::None => open.take_bare(byte, rest),
                Quote::Single | Quote::Double => open.take_quoted(byte, rest),
                Quote::Dollar => open.take_escaped(byte, rest)?,
            };
        }
        Ok(cut)
    }
}

impl OpenWord {
    /// Consumes the part that starts with `byte`. Returns its length in bytes.
    fn take_bare(&mut self, byte: u8, rest: &[u8]) -> usize {
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

    /// In quotes a backslash means something before their own mark only.
    fn take_quoted(&mut self, byte: u8, rest: &[u8]) -> usize {
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

    fn take_escaped(&mut self, byte: u8, rest: &[u8]) -> Result<usize, LineError> {
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

/// The byte that an escape stands for, and the length of the escape behind its backslash. `None`
/// when it may go on behind the end of the line.
fn unescape(rest: &[u8]) -> Result<Option<(u8, usize)>, LineError> {
    let simple = |value| Ok(Some((value, 1)));
    match rest.first() {
        None => Ok(None),
        Some(b'x') => {
            number(&rest[1..], 16, 2).map(|found| found.map(|(value, used)| (value, used + 1)))
        }
        Some(b'0'..=b'7') => number(rest, 8, 3),
        Some(b'n') => simple(b'\n'),
        Some(b'r') => simple(b'\r'),
        Some(b't') => simple(b'\t'),
        Some(b'a') => simple(0x07),
        Some(b'b') => simple(0x08),
        Some(b'e') => simple(0x1b),
        Some(b'f') => simple(0x0c),
        Some(b'v') => simple(0x0b),
        Some(same @ (b'\\' | b'\'' | b'"')) => simple(*same),
        Some(_) => Err(LineError::Escape),
    }
}

/// At most `most` digits as a byte.
fn number(text: &[u8], radix: u32, most: usize) -> Result<Option<(u8, usize)>, LineError> {
    let digits = text
        .iter()
        .take(most)
        .map_while(|byte| char::from(*byte).to_digit(radix));
    let (value, used) = digits.fold((0, 0), |(value, used), digit| {
        (value * radix + digit, used + 1)
    });
    if used < most && used == text.len() {
        return Ok(None);
    }
    match u8::try_from(value) {
        Ok(0) if used > 0 => Err(LineError::Nul),
        Ok(value) if used > 0 => Ok(Some((value, used))),
        _ => Err(LineError::Escape),
    }
}

/// What separates words: `isspace(3)`.
const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// How a word that stands for these bytes is typed in `quote`, its end left out: another word, or
/// the rest of this one, can follow. `None` if it cannot be typed so.
pub(super) fn quote(bytes: &[u8], quote: Quote) -> Option<String> {
    let shown = output::escape(bytes);
    if quote == Quote::Dollar {
        return Some(dollar(bytes));
    }
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| *text == shown)?;
    match quote {
        Quote::None => {
            let mut typed = String::with_capacity(text.len());
            for (at, character) in text.char_indices() {
                let is_special =
                    " \\\"'*?[$".contains(character) || (at == 0 && "#!~".contains(character));
                if is_special {
                    typed.push('\\');
                }
                typed.push(character);
            }
            Some(typed)
        }
        // Its backslash would take the meaning of the closing mark.
        _ if text.ends_with('\\') => None,
        _ => {
            let mark = char::from(quote.mark());
            Some(format!(
                "{mark}{}",
                text.replace(mark, &format!("\\{mark}"))
            ))
        }
    }
}

/// Bytes in `$'…`.
fn dollar(bytes: &[u8]) -> String {
    let mut typed = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let mut encoded = [0; 4];
            let encoded = character.encode_utf8(&mut encoded);
            match character {
                '\\' | '\'' => typed.extend(['\\', character]),
                _ if output::escape(encoded.as_bytes()) == *encoded => typed.push(character),
                _ => hexadecimal(encoded.as_bytes(), &mut typed),
            }
        }
        hexadecimal(chunk.invalid(), &mut typed);
    }
    typed
}

fn hexadecimal(bytes: &[u8], typed: &mut String) {
    use fmt::Write as _;
    for byte in bytes {
        // A string takes everything.
        let _ = write!(typed, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(line: &str) -> Vec<String> {
        let words = words(line.as_bytes()).unwrap();
        words
            .iter()
            .map(|word| String::from_utf8(word.bytes()).unwrap())
            .collect()
    }

    /// The word with what keeps its meaning in brackets.
    fn meant(line: &str) -> String {
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
    fn words_are_cut_as_openssh_cuts_them() {
        assert_eq!(cut("get  a b\t c\r"), ["get", "a", "b", "c"]);
        assert_eq!(
            cut(r#"get "a b" 'c"d' e\ f"#),
            ["get", "a b", "c\"d", "e f"]
        );
        assert_eq!(cut(r#"put "" a"b c"d"#), ["put", "", "ab cd"]);
        assert_eq!(cut(r#""a\b" "a\"b" 'a\'b'"#), [r"a\b", "a\"b", "a'b"]);
        assert_eq!(cut("  "), Vec::<String>::new());
    }

    #[test]
    fn a_comment_starts_where_a_word_would() {
        assert_eq!(cut("ls # all"), ["ls"]);
        assert_eq!(cut(r##"ls a#b \# "#x""##), ["ls", "a#b", "#", "#x"]);
    }

    #[test]
    fn what_is_quoted_means_itself() {
        assert_eq!(meant("a*"), "<a><*>");
        assert_eq!(meant(r"a\*"), "<a>*");
        assert_eq!(meant("'*'?"), "*<?>");
        assert_eq!(meant("$'*'"), "*");
    }

    #[test]
    fn what_cannot_be_typed_has_escapes() {
        let words = words(br"$'\xff\x1b\101\n\'' $'a'b $x").unwrap();
        assert_eq!(words[0].bytes(), b"\xff\x1bA\n'");
        assert_eq!(words[1].bytes(), b"ab");
        assert_eq!(words[2].bytes(), b"$x");
    }

    #[test]
    fn a_line_that_is_not_finished_is_refused() {
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
    fn marks_before_a_command_are_taken_off() {
        let line = prefixed(b"  -@ rm -r a");
        assert!(line.ignores_errors && line.is_silent);
        assert_eq!(line.text, b"rm -r a");
        let line = prefixed(b"ls -l");
        assert!(!line.ignores_errors && !line.is_silent);
    }

    #[test]
    fn a_name_can_end_in_a_blank() {
        let line = prefixed(br" get a\  ");
        assert_eq!(words(line.text).unwrap()[1].bytes(), b"a ");
    }

    #[test]
    fn a_name_that_is_quoted_is_read_as_it_was() {
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
    fn a_line_that_goes_on_says_where_its_last_word_is() {
        let open = |line: &str| Cut::new(line.as_bytes()).unwrap().open;
        assert_eq!(open("get "), None);
        let word = open(r#"get a "b c"#).unwrap();
        assert_eq!((word.start, word.quote), (6, Quote::Double));
        assert_eq!(word.word.bytes(), b"b c");
        let word = open(r"get $'a\x4").unwrap();
        assert_eq!((word.word.bytes(), word.is_dangling), (b"a".to_vec(), true));
    }
}
