//! The line that a person types: edited, completed, remembered.
//!
//! rustyline reads the terminal in a thread that may wait as long as the person does. A completion
//! asks the guest from that thread, for a moment only: a guest that says nothing, or says too much,
//! completes nothing.

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
    complete::{Answer, Question, Source},
    expand::{Found, Guest, Host, below},
    history::HistoryFile,
};
use crate::files::{
    attributes::{is_directory, is_link},
    prompt::expand::Tree,
};

/// How long a completion waits for the guest.
const PATIENCE: Duration = Duration::from_secs(3);

/// Most entries of a directory that are looked at for a completion.
const MAX_ENTRIES: usize = 20_000;

/// Most links whose ends are looked at.
const MAX_LINKS: usize = 32;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Line(String),
    /// The line was given up.
    Nothing,
    End,
}

/// A line editor.
#[derive(Debug)]
pub(super) struct Editor {
    // Away while a line is read.
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

    /// Reads a line. Names of the guest are completed from `directory` on.
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
            // Ctrl-C, here or for the command before; or another width of the terminal.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Typed::Nothing,
            Err(ReadlineError::Eof) => Typed::End,
            Err(error) => return Err(error.into()),
        };
        self.lines = Some(lines);
        Ok(typed)
    }
}

/// Finds names to complete.
#[derive(Debug)]
struct Names {
    sftp: Sftp,
    directory: RemotePath,
    runtime: Handle,
}

impl Names {
    async fn find(&self, question: &Question) -> Vec<Found> {
        match question.source {
            Source::Commands => Vec::new(),
            Source::Local => {
                let fits = |name: &[u8]| question.fits(name);
                let found = Host.list(question.directory(), fits).await;
                found.unwrap_or_default()
            }
            Source::Remote => {
                let found = tokio::time::timeout(PATIENCE, self.remote(question)).await;
                found.ok().flatten().unwrap_or_default()
            }
        }
    }

    async fn remote(&self, question: &Question) -> Option<Vec<Found>> {
        let guest = Guest {
            sftp: &self.sftp,
            directory: &self.directory,
        };
        let path = match question.directory() {
            [] => self.directory.clone(),
            path => below(guest.directory, path),
        };
        let mut reader = self.sftp.read_dir(&path).await.ok()?;
        let (mut found, mut seen, mut links) = (Vec::new(), 0, 0);
        while let Some(entry) = reader.next().await.ok()? {
            seen += 1;
            if seen > MAX_ENTRIES {
                return None;
            }
            let name = entry.name().as_encoded_bytes();
            if !question.fits(name) {
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
        let Some(question) = line
            .get(..at)
            .and_then(|line| Question::new(line.as_bytes()))
        else {
            return Ok((at, Vec::new()));
        };
        let answers = match question.source {
            Source::Commands => question.commands(),
            _ => question.answers(&self.runtime.block_on(self.find(&question))),
        };
        let pairs = answers.into_iter().map(|Answer { shown, typed }| Pair {
            display: shown,
            replacement: typed,
        });
        Ok((question.start, pairs.collect()))
    }
}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}
