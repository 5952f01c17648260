//! Everything that is printed, for people and for programs.
//!
//! What comes from a guest is escaped on its way to a terminal: a file name may hold anything a
//! terminal obeys.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use serde_json::{Value, json};
use tracing_subscriber::filter::LevelFilter;

/// Prints one line to stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(on_stdout)
}

/// Prints lines to stdout, many at once.
pub(crate) fn lines(lines: &[String]) -> io::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    lines
        .iter()
        .try_for_each(|line| writeln!(stdout, "{line}"))
        .and_then(|()| stdout.flush())
        .map_err(on_stdout)
}

/// Says of an error that it is one of standard output. Its kind stays.
pub(crate) fn on_stdout(error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot write to standard output: {error}"),
    )
}

/// Prints one JSON value to stdout.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// Prints one JSON value to stdout, on one line.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// Prints one line to stderr, with our name before it.
pub(crate) fn complain(text: &str) {
    // Nothing is left to do if not even this can be printed.
    let _ = writeln!(io::stderr().lock(), "agent-cli: {text}");
}

/// Sends what is logged to stderr.
pub(crate) fn start_log(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(verbose > 1)
        .init();
}

/// Makes bytes safe for a terminal: what is no text and what a terminal obeys is written as
/// `\xNN` or `\u{NNNN}`.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
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
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Characters that change how the text around them is shown: line separators and the controls of
/// writing direction (Unicode `Bidi_Control`).
const fn is_deceptive(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// A name in JSON: as text, and if it is not UTF-8 also as the bytes it is.
pub(crate) fn name_fields(name: &[u8]) -> serde_json::Map<String, Value> {
    let mut fields = serde_json::Map::new();
    put_bytes(&mut fields, "name", name);
    fields
}

/// Bytes in JSON: as text, and if they are not UTF-8 also as the numbers they are, in `KEY_bytes`.
pub(crate) fn put_bytes(fields: &mut serde_json::Map<String, Value>, key: &str, bytes: &[u8]) {
    fields.insert(key.to_owned(), json!(String::from_utf8_lossy(bytes)));
    if std::str::from_utf8(bytes).is_err() {
        fields.insert(format!("{key}_bytes"), json!(bytes));
    }
}

/// Rows as columns, each as wide as its widest cell, two spaces between them.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let mut text = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(text, "{cell:width$}  ");
            }
            text.trim_end().to_owned()
        })
        .collect()
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
    fn a_name_that_is_not_text_keeps_its_bytes_in_json() {
        assert_eq!(name_fields(b"a")["name"], "a");
        assert!(name_fields(b"a").get("name_bytes").is_none());
        assert_eq!(name_fields(b"\xff")["name_bytes"], json!([255]));
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".into(), "b".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), ["a    b", "ccc  d"]);
    }
}
