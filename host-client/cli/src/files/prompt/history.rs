//! The history of the prompt, in a file that only its owner can read.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Most lines of the history.
const MAX_LINES: usize = 1000;

/// The history file; `None` without a home directory. Errors of reading and writing it are ignored.
#[derive(Debug)]
pub(super) struct HistoryFile {
    path: Option<PathBuf>,
}

impl HistoryFile {
    /// `$XDG_STATE_HOME/vsock-agent/sftp-history`, by default below `~/.local/state`.
    pub(super) fn of_user() -> Self {
        let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.filter(|path| path.is_absolute());
        let state = state.or_else(|| Some(env::home_dir()?.join(".local/state")));
        Self {
            path: state.map(|state| state.join("vsock-agent/sftp-history")),
        }
    }

    /// The last lines, oldest first. Truncates the file if it is much longer.
    pub(super) fn load(&self) -> Vec<String> {
        let content = self.path.as_ref().and_then(|path| fs::read(path).ok());
        let content = String::from_utf8(content.unwrap_or_default()).unwrap_or_default();
        let lines: Vec<String> = content.lines().map(str::to_owned).collect();
        let kept = lines[lines.len().saturating_sub(MAX_LINES)..].to_vec();
        if lines.len() > 2 * MAX_LINES
            && let Some(path) = &self.path
        {
            let _ = replace(path, &kept);
        }
        kept
    }

    /// Appends a line, unless it contains line breaks, as pasted text can.
    pub(super) fn append(&self, line: &str) {
        if let Some(path) = &self.path
            && !line.contains(['\n', '\r'])
        {
            let _ = append(path, line);
        }
    }
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let mut file = options().append(true).open(path)?;
    // With one `write(2)`, so that the lines of two prompts do not mix.
    file.write_all(format!("{line}\n").as_bytes())
}

fn replace(path: &Path, lines: &[String]) -> io::Result<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = options().write(true).truncate(true).open(&new)?;
    file.write_all(format!("{}\n", lines.join("\n")).as_bytes())?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("agent-cli-{name}-{}", std::process::id()));
            Self(path)
        }

        fn history(&self) -> HistoryFile {
            HistoryFile {
                path: Some(self.0.join("deep/history")),
            }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn history_is_loaded_as_appended_and_its_file_is_private() {
        let scratch = Scratch::new("history");
        let history = scratch.history();
        assert!(history.load().is_empty());
        for line in ["ls", "get grün", "a\nb"] {
            history.append(line);
        }
        assert_eq!(history.load(), ["ls", "get grün"]);
        let metadata = fs::metadata(scratch.0.join("deep/history")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_long_history_is_truncated_to_its_last_lines() {
        let scratch = Scratch::new("long-history");
        let history = scratch.history();
        for number in 0..=2 * MAX_LINES {
            history.append(&number.to_string());
        }
        let lines = history.load();
        assert_eq!(
            (lines.len(), &lines[MAX_LINES - 1][..]),
            (MAX_LINES, "2000")
        );
        let content = fs::read_to_string(scratch.0.join("deep/history")).unwrap();
        assert_eq!(content.lines().count(), MAX_LINES);
    }
}
