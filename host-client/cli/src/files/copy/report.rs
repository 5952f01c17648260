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
    output::{self, FirstLines},
};

/// Time between two updates of the file name in the bar.
const NAME_INTERVAL: Duration = Duration::from_millis(100);

/// Widest part of a name on the bar, in cells of the terminal: some characters take two.
const NAME_CELLS: usize = 40;

/// The form of the reports.
#[derive(Debug)]
pub(in crate::files) struct Report {
    bar: Option<ProgressBar>,
    json: bool,
    /// Only errors.
    is_quiet: bool,
    state: Mutex<State>,
    failures: FirstLines,
    notices: FirstLines,
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
        let shows = !args.quiet && !args.json && io::stderr().is_terminal();
        Self {
            json: args.json,
            is_quiet: args.quiet,
            ..Self::for_prompt(shows)
        }
    }

    /// For a copy that is one command of many.
    pub(in crate::files) fn for_prompt(shows_bar: bool) -> Self {
        Self {
            bar: shows_bar.then(bar),
            json: false,
            is_quiet: false,
            state: Mutex::default(),
            failures: FirstLines::default(),
            notices: FirstLines::default(),
        }
    }

    /// Takes the bar away.
    pub(in crate::files) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// The last words, and the exit code. A copy that failed as a whole was `about` this.
    pub(super) fn end(
        self,
        copied: Result<anyhow::Result<CopySummary>, i32>,
        about: &OsStr,
    ) -> anyhow::Result<u8> {
        self.clear();
        let summary = match copied {
            Err(signal) => return Ok(exit::after_signal(signal)),
            Ok(Ok(summary)) => summary,
            Ok(Err(error)) => {
                // The path is part of the line, and of the message.
                let copy = error.chain().position(|cause| cause.is::<CopyError>());
                let mut causes = error.chain();
                if let Some(before) = copy.and_then(|copy| copy.checked_sub(1)) {
                    causes.nth(before);
                }
                let why = exit::words(causes);
                self.print("failed", about.as_bytes(), || json!({ "error": why }));
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
        if self.failures.is_cut() {
            output::eprint_error(&format!("{} in all could not be copied", summary.failed));
        }
        Ok(match summary.failed {
            0 => 0,
            _ => exit::PARTLY,
        })
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::eprint_error(text)),
            None => output::eprint_error(text),
        }
    }

    /// Says it if it is not one too many.
    fn tell(&self, lines: &FirstLines, text: &str) {
        lines.another(|| self.say(text));
    }

    fn print(&self, event: &str, path: &[u8], more: impl FnOnce() -> Value) {
        if self.json {
            let mut line = Map::new();
            line.insert("event".to_owned(), json!(event));
            line.extend(output::name_fields(path));
            if let Value::Object(more) = more() {
                line.extend(more);
            }
            // A program that does not listen any more still gets its files.
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
                self.print(
                    "started",
                    path,
                    || json!({ "size": size, "resumed_at": resumed_at }),
                );
                self.update(|state, bar| {
                    bar.inc(resumed_at);
                    let now = Instant::now();
                    if state
                        .named_at
                        .is_none_or(|last| now.duration_since(last) >= NAME_INTERVAL)
                    {
                        state.named_at = Some(now);
                        bar.set_message(caption(path, state));
                    }
                });
            }
            CopyEvent::Moved { bytes } => self.update(|_, bar| bar.inc(bytes)),
            CopyEvent::Finished { path, bytes } => {
                self.print("finished", path, || json!({ "bytes": bytes }));
                self.update(|state, _| state.done += 1);
            }
            CopyEvent::Skipped { path, reason } => {
                let reason = match reason {
                    SkipReason::Special => "it is not a regular file",
                    SkipReason::Complete => "it is complete",
                    _ => "it is not to be copied",
                };
                self.print("skipped", path, || json!({ "reason": reason }));
                self.update(|state, _| state.done += 1);
                if !self.json && !self.is_quiet {
                    self.tell(
                        &self.notices,
                        &format!("skipped {}: {reason}", output::escape(path)),
                    );
                }
            }
            CopyEvent::Changed { path } => {
                self.print("changed", path, || json!({}));
                if !self.json {
                    self.tell(&self.notices, &format!(
                        "{}: it grew or changed meanwhile; as many bytes were copied as there were at \
                         the start",
                        output::escape(path)
                    ));
                }
            }
            CopyEvent::InPlace { path, reason } => {
                self.print("in-place", path, || json!({ "reason": reason.to_string() }));
                if !self.json && !self.is_quiet {
                    let path = output::escape(path);
                    self.tell(
                        &self.notices,
                        &format!("{path}: the target is written in place: {reason}"),
                    );
                }
            }
            CopyEvent::LeftBehind { path, error } => {
                let why = exit::words(anyhow::Chain::new(error));
                self.print("left-behind", path, || json!({ "error": why }));
                if !self.json && !self.is_quiet {
                    let why = output::escape(why.as_bytes());
                    let path = output::escape(path);
                    self.tell(
                        &self.notices,
                        &format!("{path}: what an earlier copy left stays: {why}"),
                    );
                }
            }
            CopyEvent::Failed { path, error } => {
                let why = exit::words(anyhow::Chain::new(error));
                self.print("failed", path, || json!({ "error": why }));
                self.update(|state, _| state.done += 1);
                if !self.json {
                    let why = output::escape(why.as_bytes());
                    self.tell(&self.failures, &format!("{}: {why}", output::escape(path)));
                }
            }
            _ => {}
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left [{wide_bar}] {msg}";
    // The template is fixed; if it were wrong, the usual one would do.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Which file, and how many there are so far.
fn caption(path: &[u8], state: &State) -> String {
    let name = output::escape(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path));
    let name = end_of(&name, NAME_CELLS);
    match state.found {
        0 | 1 => name.to_owned(),
        found => format!("{}/{found} {name}", state.done),
    }
}

/// The end of a text, as much as there is in so many cells.
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
    fn the_end_of_a_name_is_counted_in_cells() {
        assert_eq!(end_of("abcdef", 4), "cdef");
        assert_eq!(end_of("abc", 4), "abc");
        assert_eq!(end_of("日本語", 4), "本語");
        assert_eq!(end_of("日本語", 5), "本語");
        assert_eq!(end_of("日本語", 6), "日本語");
    }
}
