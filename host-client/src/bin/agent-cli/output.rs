//! Everything that is printed, for people and for programs.
//!
//! What comes from a guest is escaped on its way to a terminal: a file name may hold anything a
//! terminal obeys.

use std::io::{self, Write};

use serde_json::{Value, json};
use tracing_subscriber::filter::LevelFilter;
pub(crate) use vsock_agent_client::protocol::printable::escape;
use vsock_agent_client::protocol::printable::{escape_json, excerpt};

/// Longest line on stderr, in characters: a path (`PATH_MAX`), and words. A guest can have a say
/// in both.
pub(crate) const MAX_COMPLAINT_CHARS: usize = 5000;

/// Widest that a column of a table is made for the sake of one cell, in characters. A wider cell
/// moves what is behind it. A guest chooses how long its names are.
const MAX_COLUMN_CHARS: usize = 100;

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
    line(&escape_json(&format!("{value:#}")))
}

/// Prints one JSON value to stdout, on one line.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    line(&escape_json(&value.to_string()))
}

/// Prints one line to stderr, with our name before it, escaped and at most so long.
pub(crate) fn complain(text: &str) {
    let text = excerpt(text.as_bytes(), MAX_COMPLAINT_CHARS);
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
        .map(|column| column_width(rows.iter().filter_map(|row| row.get(column))))
        .collect();
    rows.iter()
        .map(|row| {
            let mut text = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                push_cell(&mut text, cell, *width);
                text.push_str("  ");
            }
            text.trim_end().to_owned()
        })
        .collect()
}

/// How wide a column is made for these cells, in characters.
pub(crate) fn column_width<'a>(cells: impl IntoIterator<Item = &'a String>) -> usize {
    let widest = cells.into_iter().map(|cell| cell.chars().count()).max();
    widest.unwrap_or(0).min(MAX_COLUMN_CHARS)
}

/// Adds a cell to a line, and spaces up to `width` characters. The width of a format (`{:width$}`)
/// will not do: it is 16 bits, and panics beyond.
pub(crate) fn push_cell(line: &mut String, cell: &str, width: usize) {
    line.push_str(cell);
    let missing = width.saturating_sub(cell.chars().count());
    line.extend(std::iter::repeat_n(' ', missing));
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_cell_of_any_length_is_shown_and_does_not_widen_the_others() {
        let long = "x".repeat(70_000);
        let rows = [vec![long.clone(), "b".into()], vec!["c".into(), "d".into()]];
        let lines = table(&rows);
        assert_eq!(lines[0], long + "  b");
        assert_eq!(lines[1].len(), MAX_COLUMN_CHARS + 3);
    }
}
