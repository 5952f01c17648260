//! The local copy of a file while it is edited.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{file_limit, output};

/// Mode of the copy: the content may be secret.
const DRAFT_MODE: u32 = 0o600;

/// The default of POSIX's `more` and `crontab`.
const DEFAULT_EDITOR: &str = "vi";

/// A file in a directory of its own. Dropping it removes both, unless [`Draft::keep`] was called.
#[derive(Debug)]
pub(super) struct Draft {
    directory: PathBuf,
    path: PathBuf,
    is_kept: bool,
}

impl Draft {
    /// Creates the directory, and the file if `content` is not `None`. The file has the same name as in
    /// the guest, by which editors detect its type.
    pub(super) fn create(name: &OsStr, content: Option<&[u8]>) -> anyhow::Result<Self> {
        let random = RandomState::new().build_hasher().finish();
        let directory = env::temp_dir().join(format!("agent-cli-edit-{random:016x}"));
        // Fails if it exists: it may belong to another user.
        let made = fs::DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("cannot create {}", directory.display()))?;
        let draft = Self {
            path: directory.join(name),
            directory,
            is_kept: false,
        };
        if let Some(content) = content {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(DRAFT_MODE);
            let file = options.open(&draft.path);
            file.and_then(|mut file| file.write_all(content))
                .with_context(|| format!("cannot write {draft}"))?;
        }
        Ok(draft)
    }

    /// Reads the file; `None` if it does not exist.
    pub(super) fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {self}")),
        }
    }

    /// Runs the user's editor on the file and waits for it to end.
    pub(super) async fn edit(&self) -> anyhow::Result<()> {
        let editor = editor();
        let mut command = command(&editor, &self.path);
        let status = tokio::task::spawn_blocking(move || file_limit::status(&mut command)).await?;
        let status = status.with_context(|| format!("cannot run {}", editor.display()))?;
        if !status.success() {
            bail!("the editor ended with {status}: nothing was written")
        }
        Ok(())
    }

    /// Keeps the directory and the file when this is dropped.
    pub(super) const fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl std::fmt::Display for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&output::escape_path(&self.path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            // With the editor's own files. Files that cannot be removed are in a private directory.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn editor() -> OsString {
    ["VISUAL", "EDITOR"]
        .into_iter()
        .filter_map(env::var_os)
        .find(|editor| !editor.is_empty())
        .unwrap_or_else(|| DEFAULT_EDITOR.into())
}

/// Runs the editor through a shell, because the variable may contain options.
fn command(editor: &OsStr, path: &Path) -> Command {
    let mut script = editor.to_owned();
    script.push(" \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script).arg(editor).arg(path);
    command
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_draft_is_private_keeps_the_name_and_is_removed_on_drop() {
        let draft = Draft::create("a.conf".as_ref(), Some(b"text")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&draft.directory), mode(&draft.path)), (0o700, 0o600));
        assert!(draft.path.ends_with("a.conf"));
        assert_eq!(draft.read().unwrap().unwrap(), b"text");
        let directory = draft.directory.clone();
        drop(draft);
        assert!(!directory.exists());
    }

    #[test]
    fn a_draft_without_content_does_not_exist() {
        let draft = Draft::create("new".as_ref(), None).unwrap();
        assert_eq!(draft.read().unwrap(), None);
    }

    #[test]
    fn an_editor_may_have_options_and_a_path_may_have_spaces() {
        let mut command = command("printf '%s|'".as_ref(), Path::new("/a b/-c"));
        assert_eq!(command.output().unwrap().stdout, b"/a b/-c|");
    }
}
