//! Escapes text of another party for a terminal, a log or a file.
//!
//! A name or a message may contain control sequences of a terminal, and be of any length.

use std::fmt::Write as _;

/// Most characters of another party's text in one field of a log or of a status file.
pub const LOG_CHARS: usize = 200;

/// Escapes bytes: what is not UTF-8, control characters (Unicode `Cc`: C0, DEL and C1) and
/// characters that change how the text around them is shown become `\xNN` or `\u{NNNN}`.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push(&mut text, character);
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// As [`escape`], of the first `most` characters only; `…` stands for the rest. A byte that is not
/// UTF-8 counts as a character.
#[must_use]
pub fn excerpt(bytes: &[u8], most: usize) -> String {
    // No character has more than four bytes, so this has at least `most` of them, if there are so many; a
    // character that is cut off comes after them.
    let head = &bytes[..bytes.len().min(most.saturating_add(1).saturating_mul(4))];
    let mut left = most;
    let mut end = 0;
    for chunk in head.utf8_chunks() {
        let lengths = chunk.valid().chars().map(char::len_utf8);
        for length in lengths.chain(chunk.invalid().iter().map(|_| 1)) {
            if left == 0 {
                return escape(&bytes[..end]) + "…";
            }
            left -= 1;
            end += length;
        }
    }
    escape(bytes)
}

/// Escapes the same characters as [`escape`] in JSON text, by JSON's escapes: `\u009b`. Parsers read the
/// same value.
///
/// JSON's own escapes take care of C0 only (RFC 8259, section 7); none of the other characters can
/// stand outside a string.
#[must_use]
pub fn escape_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\x7f'..='\u{9f}' => {
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            _ if is_deceptive(character) => {
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text
}

fn push(text: &mut String, character: char) {
    match character {
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
            let _ = write!(text, "\\x{:02x}", u32::from(character));
        }
        _ if is_deceptive(character) => {
            let _ = write!(text, "\\u{{{:x}}}", u32::from(character));
        }
        _ => text.push(character),
    }
}

/// Characters that change how the text around them is shown: line separators and the controls of
/// writing direction (Unicode `Bidi_Control`).
const fn is_deceptive(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// An error and all its causes, separated by `: `.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(escape(b"a\x1b[31mb\n\x7f"), "a\\x1b[31mb\\x0a\\x7f");
        assert_eq!(escape("\u{9b}31m".as_bytes()), "\\x9b31m");
        assert_eq!(
            escape("a\u{202e}b\u{2066}".as_bytes()),
            "a\\u{202e}b\\u{2066}"
        );
    }

    #[test]
    fn text_stays_and_bytes_that_are_none_are_shown() {
        assert_eq!(escape("grün 日本".as_bytes()), "grün 日本");
        assert_eq!(escape(b"a\xffb\xc3"), "a\\xffb\\xc3");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(excerpt("grün".as_bytes(), 4), "grün");
        assert_eq!(excerpt("grün".as_bytes(), 3), "grü…");
        assert_eq!(excerpt(b"\xff\xff\xff", 2), "\\xff\\xff…");
        assert_eq!(excerpt("日本語".as_bytes(), 0), "…");
        assert_eq!(excerpt(b"", 0), "");
        let long = "\u{1f600}".repeat(70_000);
        assert_eq!(excerpt(long.as_bytes(), 3), "\u{1f600}\u{1f600}\u{1f600}…");
    }

    #[test]
    fn json_means_the_same_and_has_no_control_characters() {
        let text = "\u{9b}31m \x1b[31m \x7f \u{202e}x\u{2069}\u{2028} grün";
        let json = escape_json(&serde_json::Value::from(text).to_string());
        assert!(!json.chars().any(char::is_control), "{json}");
        assert!(!json.chars().any(is_deceptive), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
