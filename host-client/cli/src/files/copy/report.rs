//! Reports on a copy: a progress bar for a terminal, lines of JSON for programs, and errors.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal},
    os::unix::ffi::OsStrExt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use unicode_width::UnicodeWidthChar;
use vsock_agent_client::copy::{CopyError, CopyEvent, CopyObserver, CopySummary, SkipReason};

use crate::{
    args::CopyArgs,
    exit,
    output::{self, LineLimit},
};

/// Time between two updates of the file name in the bar.
const NAME_INTERVAL: Duration = Duration::from_millis(100);

/// Widest file name in the bar, in cells of the terminal. Some characters take two cells.
const NAME_CELLS: usize = 40;

/// Reports the events of a copy.
#[derive(Debug)]
pub(in crate::files) struct Report {
    bar: Option<ProgressBar>,
    json: bool,
    /// Whether only errors are printed.
    is_quiet: bool,
    state: Mutex<State>,
    failures: LineLimit,
    notices: LineLimit,
}

#[derive(Debug, Default)]
struct State {
    found_bytes: u64,
    found: u64,
    done: u64,
    named_at: Option<Instant>,
}

impl Report {
    pub(super) fn new(args: &CopyArgs) -> Self {
        let has_bar = !args.quiet && !args.json && io::stderr().is_terminal();
        let mut report = Self::for_prompt(has_bar);
        (report.json, report.is_quiet) = (args.json, args.quiet);
        report
    }

    /// The report of a copy in the prompt.
    pub(in crate::files) fn for_prompt(has_bar: bool) -> Self {
        Self {
            bar: has_bar.then(bar),
            json: false,
            is_quiet: false,
            state: Mutex::default(),
            failures: LineLimit::default(),
            notices: LineLimit::default(),
        }
    }

    /// Prints the summary, or the failure of the whole copy with `subject` as its path. Returns the
    /// exit code.
    pub(super) fn end(
        self,
        copied: Result<anyhow::Result<CopySummary>, i32>,
        subject: &OsStr,
    ) -> anyhow::Result<u8> {
        self.clear();
        let summary = match copied {
            Err(signal) => return Ok(exit::after_signal(signal)),
            Ok(Ok(summary)) => summary,
            Ok(Err(error)) => {
                // Without the contexts before the `CopyError`, which name the path.
                let mut causes = error.chain();
                let copy = causes.position(|cause| cause.is::<CopyError>());
                let causes = error.chain().skip(copy.unwrap_or(0));
                let text = exit::message(causes);
                self.print_json("failed", subject.as_bytes(), json!({ "error": text }));
                return Err(error);
            }
        };
        if self.json {
            output::json_line(&json!({
                "event": "summary",
                "files": summary.files,
                "directories": summary.directories,
                "links": summary.links,
                "bytes": summary.bytes,
                "skipped": summary.skipped,
                "failed": summary.failed,
            }))?;
        }
        if self.bar.is_some() && summary.files + summary.directories > 1 {
            output::eprint_error(&format!(
                "{} files, {} directories, {} links, {}",
                summary.files,
                summary.directories,
                summary.links,
                HumanBytes(summary.bytes)
            ));
        }
        if self.failures.is_exceeded() {
            output::eprint_error(&format!("{} files could not be copied", summary.failed));
        }
        Ok(if summary.failed == 0 { 0 } else { exit::PARTLY })
    }

    /// Removes the bar.
    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Prints a line above the bar, unless the output is JSON.
    fn eprint(&self, limit: &LineLimit, line: &str) {
        if self.json {
            return;
        }
        limit.print(|| match &self.bar {
            Some(bar) => bar.suspend(|| output::eprint_error(line)),
            None => output::eprint_error(line),
        });
    }

    fn eprint_notice(&self, line: &str) {
        if !self.is_quiet {
            self.eprint(&self.notices, line);
        }
    }

    /// Prints an event with the fields `more`, if the output is JSON.
    fn print_json(&self, event: &str, path: &[u8], more: Value) {
        if self.json {
            let mut line = Map::new();
            line.insert("event".to_owned(), json!(event));
            line.extend(output::name_fields(path));
            if let Value::Object(more) = more {
                line.extend(more);
            }
            // A closed stdout does not end the copy.
            let _ = output::json_line(&Value::Object(line));
        }
    }

    fn update(&self, change: impl FnOnce(&mut State, &ProgressBar)) {
        if let Some(bar) = &self.bar {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state, bar);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.clear();
    }
}

impl CopyObserver for Report {
    fn observe(&self, event: CopyEvent<'_>) {
        match event {
            CopyEvent::Found { bytes, entries } => self.update(|state, bar| {
                state.found += entries;
                state.found_bytes += bytes;
                bar.set_length(state.found_bytes);
            }),
            CopyEvent::Started {
                path,
                size,
                resumed_at,
            } => {
                let more = json!({ "size": size, "resumed_at": resumed_at });
                self.print_json("started", path, more);
                self.update(|state, bar| {
                    bar.inc(resumed_at);
                    let now = Instant::now();
                    let is_due = |last| now.duration_since(last) >= NAME_INTERVAL;
                    if state.named_at.is_none_or(is_due) {
                        state.named_at = Some(now);
                        bar.set_message(caption(path, state));
                    }
                });
            }
            CopyEvent::Moved { bytes } => self.update(|_, bar| bar.inc(bytes)),
            CopyEvent::Finished { path, bytes } => {
                self.print_json("finished", path, json!({ "bytes": bytes }));
                self.update(|state, _| state.done += 1);
            }
            CopyEvent::Skipped { path, reason } => {
                let reason = match reason {
                    SkipReason::Special => "it is not a regular file",
                    SkipReason::Complete => "it is complete",
                    _ => "it is not to be copied",
                };
                self.print_json("skipped", path, json!({ "reason": reason }));
                self.update(|state, _| state.done += 1);
                self.eprint_notice(&format!("skipped {}: {reason}", output::escape(path)));
            }
            CopyEvent::Changed { path } => {
                self.print_json("changed", path, Value::Null);
                let path = output::escape(path);
                let line = format!("{path}: it changed during the copy, which has its first size");
                self.eprint(&self.notices, &line);
            }
            CopyEvent::InPlace { path, reason } => {
                self.print_json("in-place", path, json!({ "reason": reason.to_string() }));
                let path = output::escape(path);
                self.eprint_notice(&format!("{path}: the target is written in place: {reason}"));
            }
            CopyEvent::LeftBehind { path, error } => {
                let error = exit::message(anyhow::Chain::new(error));
                self.print_json("left-behind", path, json!({ "error": error }));
                let path = output::escape(path);
                self.eprint_notice(&format!("{path}: a partial earlier copy remains: {error}"));
            }
            CopyEvent::Failed { path, error } => {
                let error = exit::message(anyhow::Chain::new(error));
                self.print_json("failed", path, json!({ "error": error }));
                self.update(|state, _| state.done += 1);
                let path = output::escape(path);
                self.eprint(&self.failures, &format!("{path}: {error}"));
            }
            _ => {}
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left [{wide_bar}] {msg}";
    // If the template were invalid, the default one would be used.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// The name of the current file, and the count of files if there are several.
fn caption(path: &[u8], state: &State) -> String {
    let name = output::escape(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path));
    let name = end_of(&name, NAME_CELLS);
    match state.found {
        0 | 1 => name.to_owned(),
        found => format!("{}/{found} {name}", state.done),
    }
}

/// The end of `text` that fits into `cells` cells of a terminal.
fn end_of(text: &str, cells: usize) -> &str {
    let mut taken = 0;
    let mut characters = text.char_indices().rev();
    let over = characters.find(|(_, character)| {
        taken += character.width().unwrap_or(0);
        taken > cells
    });
    over.map_or(text, |(at, character)| &text[at + character.len_utf8()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_in_the_bar_is_shortened_by_terminal_cells() {
        assert_eq!(end_of("abcdef", 4), "cdef");
        assert_eq!(end_of("abc", 4), "abc");
        assert_eq!(end_of("日本語", 4), "本語");
        assert_eq!(end_of("日本語", 5), "本語");
        assert_eq!(end_of("日本語", 6), "日本語");
    }
}
