//! Reads lines from the terminal, with completion and history.
//!
//! rustyline reads the terminal in a blocking thread. A completion reads a directory of the guest from
//! that thread, with a time limit and a limit of entries.

use std::time::Duration;

use rustyline::{
    CompletionType, Config, Context, Helper,
    completion::{Completer, Pair},
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::MemHistory,
    validate::Validator,
};
use tokio::runtime::Handle;
use vsock_agent_client::{RemotePath, Sftp};

use super::{
    complete::{Query, Source},
    expand::{Found, Host, Tree, below},
    history::HistoryFile,
};
use crate::files::attributes::{is_directory, is_link};

/// Time limit of a completion with names of the guest.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(3);

/// Most entries of a directory that a completion reads.
const MAX_ENTRIES: usize = 20_000;

/// Most symbolic links that a completion follows.
const MAX_LINKS: usize = 32;

/// The input of the user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Line(String),
    /// The line was cancelled, as by Ctrl-C.
    Cancelled,
    End,
}

/// A line editor.
#[derive(Debug)]
pub(super) struct Editor {
    /// `None` while a line is read.
    lines: Option<rustyline::Editor<Names, MemHistory>>,
    history: HistoryFile,
}

impl Editor {
    pub(super) fn new(sftp: Sftp, directory: RemotePath) -> anyhow::Result<Self> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .history_ignore_space(true)
            .build();
        let memory = MemHistory::with_config(&config);
        let mut lines = rustyline::Editor::with_history(config, memory)?;
        let history = HistoryFile::of_user();
        for line in history.load() {
            lines.add_history_entry(line)?;
        }
        lines.set_helper(Some(Names {
            sftp,
            directory,
            runtime: Handle::current(),
        }));
        Ok(Self {
            lines: Some(lines),
            history,
        })
    }

    /// Reads a line. `directory` is the current directory in the guest.
    pub(super) async fn read(&mut self, directory: &RemotePath) -> anyhow::Result<Typed> {
        let Some(mut lines) = self.lines.take() else {
            return Ok(Typed::End);
        };
        if let Some(names) = lines.helper_mut() {
            names.directory = directory.clone();
        }
        let reading = tokio::task::spawn_blocking(move || {
            let line = lines.readline("sftp> ");
            (lines, line)
        });
        let (mut lines, line) = reading.await?;
        let typed = match line {
            Ok(line) => {
                let is_new = !line.trim().is_empty() && lines.add_history_entry(&line[..])?;
                if is_new {
                    self.history.append(&line);
                }
                Typed::Line(line)
            }
            // Ctrl-C, now or during the previous command, or SIGWINCH.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Typed::Cancelled,
            Err(ReadlineError::Eof) => Typed::End,
            Err(error) => return Err(error.into()),
        };
        self.lines = Some(lines);
        Ok(typed)
    }
}

/// Completes words.
#[derive(Debug)]
struct Names {
    sftp: Sftp,
    directory: RemotePath,
    runtime: Handle,
}

impl Names {
    async fn complete(&self, query: &Query) -> Vec<Pair> {
        let found = match query.source {
            Source::Commands => return query.commands(),
            Source::Local => {
                let matches = |name: &[u8]| query.matches(name);
                Host.list(&query.directory, matches).await.ok()
            }
            Source::Remote => {
                let found = tokio::time::timeout(REMOTE_TIMEOUT, self.remote(query)).await;
                found.ok().flatten()
            }
        };
        query.complete(&found.unwrap_or_default())
    }

    async fn remote(&self, query: &Query) -> Option<Vec<Found>> {
        let path = below(&self.directory, &query.directory);
        let mut reader = self.sftp.read_dir(&path).await.ok()?;
        let (mut found, mut seen, mut links) = (Vec::new(), 0, 0);
        while let Some(entry) = reader.next().await.ok()? {
            seen += 1;
            if seen > MAX_ENTRIES {
                return None;
            }
            let name = entry.name().as_encoded_bytes();
            if !query.matches(name) {
                continue;
            }
            let mut attributes = entry.attributes.clone();
            if is_link(&attributes) && links < MAX_LINKS {
                links += 1;
                attributes = self.sftp.stat(path.join(name)).await.unwrap_or(attributes);
            }
            found.push(Found {
                name: name.to_vec(),
                may_be_directory: is_directory(&attributes),
            });
        }
        Some(found)
    }
}

impl Completer for Names {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..at).unwrap_or_default();
        Ok(match Query::new(before.as_bytes()) {
            Some(query) => (query.start, self.runtime.block_on(self.complete(&query))),
            None => (at, Vec::new()),
        })
    }
}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}
