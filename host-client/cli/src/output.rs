//! Everything that is printed, as text or JSON.
//!
//! Text from a guest is escaped before it is printed: a file name may contain any control sequence of
//! a terminal.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use tracing_subscriber::filter::LevelFilter;
pub(crate) use vsock_agent_client::protocol::printable::escape;
use vsock_agent_client::protocol::printable::{escape_json, excerpt};

/// Longest line on stderr, in characters: a path (`PATH_MAX`) and a message. A guest can influence
/// both.
pub(crate) const MAX_ERROR_CHARS: usize = 5000;

/// Widest column of a table, in characters. A wider cell shifts the rest of its row. A guest chooses
/// the length of its names.
const MAX_COLUMN_CHARS: usize = 100;

/// Most lines on stderr of each kind about the files of one tree: a guest controls how many there are.
const MAX_LINES: u64 = 40;

/// Prints one line to stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(on_stdout)
}

/// Prints lines to stdout, many at once.
pub(crate) fn lines(lines: impl IntoIterator<Item = impl AsRef<str>>) -> io::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    lines
        .into_iter()
        .try_for_each(|line| writeln!(stdout, "{}", line.as_ref()))
        .and_then(|()| stdout.flush())
        .map_err(on_stdout)
}

/// Adds to an error that it is about standard output. Keeps its kind.
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

/// A JSON array on stdout whose values are printed one by one, because there can be very many.
#[derive(Debug, Default)]
pub(crate) struct JsonArray {
    has_items: bool,
}

impl JsonArray {
    /// Prints some values, each on a line.
    pub(crate) fn items(&mut self, values: impl IntoIterator<Item = Value>) -> io::Result<()> {
        let items = values.into_iter().map(|value| {
            let start = if self.has_items { ", " } else { "[ " };
            self.has_items = true;
            format!("{start}{}", escape_json(&value.to_string()))
        });
        lines(items)
    }

    /// Prints its end.
    pub(crate) fn end(self) -> io::Result<()> {
        line(if self.has_items { "]" } else { "[]" })
    }
}

/// Prints one line to stderr after the program's name, escaped and shortened to
/// [`MAX_ERROR_CHARS`].
pub(crate) fn eprint_error(text: &str) {
    let text = excerpt(text.as_bytes(), MAX_ERROR_CHARS);
    // There is nowhere to report a failure to print.
    let _ = writeln!(io::stderr().lock(), "agent-cli: {text}");
}

/// Counts lines of one kind on stderr about the files of a tree, and limits them.
#[derive(Debug, Default)]
pub(crate) struct FirstLines(AtomicU64);

impl FirstLines {
    /// Prints one more with `print`. After [`MAX_LINES`], prints once that there are more.
    pub(crate) fn another(&self, print: impl FnOnce()) {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            ..MAX_LINES => print(),
            MAX_LINES => eprint_error("and more of these, which are not shown"),
            _ => {}
        }
    }

    /// Whether some were left out.
    pub(crate) fn is_cut(&self) -> bool {
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
    let columns = Columns::of(rows.iter());
    rows.iter().map(|row| columns.line(row)).collect()
}

/// The widths of a table's columns, in characters.
#[derive(Debug, Default)]
pub(crate) struct Columns(Vec<usize>);

impl Columns {
    /// Those for these rows.
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

    /// A row as a line.
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

/// How wide a column is made for these cells, in characters.
pub(crate) fn column_width(cells: impl IntoIterator<Item = impl AsRef<str>>) -> usize {
    let widths = cells.into_iter().map(|cell| cell.as_ref().chars().count());
    let widest = widths.max();
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
    fn only_the_first_lines_are_printed() {
        let lines = FirstLines::default();
        let mut printed = 0;
        for _ in 0..MAX_LINES {
            lines.another(|| printed += 1);
        }
        assert!(!lines.is_cut());
        lines.another(|| printed += 1);
        lines.another(|| printed += 1);
        assert!(lines.is_cut());
        assert_eq!(printed, MAX_LINES);
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

    #[test]
    fn a_cell_of_any_length_is_shown_and_does_not_widen_the_others() {
        let long = "x".repeat(70_000);
        let rows = [vec![long.clone(), "b".into()], vec!["c".into(), "d".into()]];
        let lines = table(&rows);
        assert_eq!(lines[0], long + "  b");
        assert_eq!(lines[1].len(), MAX_COLUMN_CHARS + 3);
    }
}
