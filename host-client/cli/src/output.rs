//! Prints text and JSON.
//!
//! Text from a guest is escaped before it is printed: a file name may contain any control sequence of
//! a terminal.

use std::{
    ffi::OsStr,
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use tracing_subscriber::filter::LevelFilter;
pub(crate) use vsock_agent_client::protocol::printable::escape;
use vsock_agent_client::protocol::printable::{escape_json, excerpt};

/// Longest line on stderr, in characters: enough for a path (`PATH_MAX`) and a message. A guest can
/// influence both.
pub(crate) const MAX_ERROR_CHARS: usize = 5000;

/// Widest column of a table, in characters. A wider cell shifts the rest of its row. A guest controls
/// the length of its names.
const MAX_COLUMN_CHARS: usize = 100;

/// Most lines of one kind on stderr about the files of one tree. A guest controls how many there are.
const MAX_LINES: u64 = 40;

/// Escapes a path of the host.
pub(crate) fn escape_path(path: impl AsRef<OsStr>) -> String {
    escape(path.as_ref().as_encoded_bytes())
}

/// Prints one line to stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(on_stdout)
}

/// Prints lines to stdout through one buffer.
pub(crate) fn lines(lines: impl IntoIterator<Item = impl AsRef<str>>) -> io::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    lines
        .into_iter()
        .try_for_each(|line| writeln!(stdout, "{}", line.as_ref()))
        .and_then(|()| stdout.flush())
        .map_err(on_stdout)
}

/// Adds "cannot write to standard output" to an error. Keeps its kind.
pub(crate) fn on_stdout(error: io::Error) -> io::Error {
    let text = format!("cannot write to standard output: {error}");
    io::Error::new(error.kind(), text)
}

/// Prints one JSON value to stdout.
pub(crate) fn json(value: &Value) -> io::Result<()> {
    line(&escape_json(&format!("{value:#}")))
}

/// Prints one JSON value to stdout, on one line.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    line(&escape_json(&value.to_string()))
}

/// A JSON array on stdout, printed value by value to bound the memory.
#[derive(Debug, Default)]
pub(crate) struct JsonArray {
    has_items: bool,
}

impl JsonArray {
    /// Prints values, one per line.
    pub(crate) fn items(&mut self, values: impl IntoIterator<Item = Value>) -> io::Result<()> {
        let items = values.into_iter().map(|value| {
            let start = if self.has_items { ", " } else { "[ " };
            self.has_items = true;
            format!("{start}{}", escape_json(&value.to_string()))
        });
        lines(items)
    }

    /// Prints the closing bracket.
    pub(crate) fn end(self) -> io::Result<()> {
        line(if self.has_items { "]" } else { "[]" })
    }
}

/// Prints one line to stderr after the program's name, escaped and shortened to
/// [`MAX_ERROR_CHARS`].
pub(crate) fn eprint_error(text: &str) {
    let text = excerpt(escape(text.as_bytes()).as_bytes(), MAX_ERROR_CHARS);
    // A failure to print cannot be reported.
    let _ = writeln!(io::stderr().lock(), "agent-cli: {text}");
}

/// Limits the lines of one kind on stderr to [`MAX_LINES`].
#[derive(Debug, Default)]
pub(crate) struct LineLimit(AtomicU64);

impl LineLimit {
    /// Calls `print` unless the limit is reached. Prints a note when it is exceeded first.
    pub(crate) fn print(&self, print: impl FnOnce()) {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            ..MAX_LINES => print(),
            MAX_LINES => eprint_error("further messages of this kind are not shown"),
            _ => {}
        }
    }

    /// Whether lines were omitted.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.0.load(Ordering::Relaxed) > MAX_LINES
    }
}

/// Starts logging to stderr.
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

/// A JSON object with `name` as in [`put_bytes`].
pub(crate) fn name_fields(name: &[u8]) -> serde_json::Map<String, Value> {
    let mut fields = serde_json::Map::new();
    put_bytes(&mut fields, "name", name);
    fields
}

/// Adds bytes to a JSON object: as text in `KEY`, and if they are not UTF-8 also as an array of
/// numbers in `KEY_bytes`.
pub(crate) fn put_bytes(fields: &mut serde_json::Map<String, Value>, key: &str, bytes: &[u8]) {
    fields.insert(key.to_owned(), json!(String::from_utf8_lossy(bytes)));
    if std::str::from_utf8(bytes).is_err() {
        fields.insert(format!("{key}_bytes"), json!(bytes));
    }
}

/// Formats rows as aligned columns with two spaces between them.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = Columns::of(rows.iter());
    rows.iter().map(|row| columns.line(row)).collect()
}

/// The widths of a table's columns, in characters.
#[derive(Debug, Default)]
pub(crate) struct Columns(Vec<usize>);

impl Columns {
    /// Measures the columns of `rows`.
    pub(crate) fn of(rows: impl IntoIterator<Item = impl AsRef<[String]>>) -> Self {
        let mut widths = Vec::new();
        for row in rows {
            let row = row.as_ref();
            widths.resize(row.len().max(widths.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = column_width([cell]).max(*width);
            }
        }
        Self(widths)
    }

    /// Formats a row as a line.
    pub(crate) fn line(&self, row: &[String]) -> String {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&self.0) {
            push_cell(&mut text, cell, *width);
            text.push_str("  ");
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// The width of the widest cell in characters, at most [`MAX_COLUMN_CHARS`].
pub(crate) fn column_width(cells: impl IntoIterator<Item = impl AsRef<str>>) -> usize {
    let widths = cells.into_iter().map(|cell| cell.as_ref().chars().count());
    widths.max().unwrap_or(0).min(MAX_COLUMN_CHARS)
}

/// Appends a cell to a line, and spaces up to `width` characters. Does not use `{:width$}`, which
/// panics for a width of more than 16 bits.
pub(crate) fn push_cell(line: &mut String, cell: &str, width: usize) {
    line.push_str(cell);
    let missing = width.saturating_sub(cell.chars().count());
    line.extend(std::iter::repeat_n(' ', missing));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_limit_prints_only_the_first_lines() {
        let limit = LineLimit::default();
        let mut printed = 0;
        for _ in 0..MAX_LINES {
            limit.print(|| printed += 1);
        }
        assert!(!limit.is_exceeded());
        limit.print(|| printed += 1);
        limit.print(|| printed += 1);
        assert!(limit.is_exceeded());
        assert_eq!(printed, MAX_LINES);
    }

    #[test]
    fn a_name_that_is_not_utf8_has_its_bytes_in_json() {
        assert_eq!(name_fields(b"a")["name"], "a");
        assert!(name_fields(b"a").get("name_bytes").is_none());
        assert_eq!(name_fields(b"\xff")["name_bytes"], json!([255]));
    }

    #[test]
    fn table_columns_are_aligned() {
        let rows = [vec!["a".into(), "b".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), ["a    b", "ccc  d"]);
    }

    #[test]
    fn a_long_table_cell_is_shown_and_does_not_widen_other_rows() {
        let long = "x".repeat(70_000);
        let rows = [vec![long.clone(), "b".into()], vec!["c".into(), "d".into()]];
        let lines = table(&rows);
        assert_eq!(lines[0], long + "  b");
        assert_eq!(lines[1].len(), MAX_COLUMN_CHARS + 3);
    }
}
