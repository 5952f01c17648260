//! The user's copy of a file while it is edited: private, and never lost by us.

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

/// Mode of the copy: the file may hold what only its owner may read.
const DRAFT_MODE: u32 = 0o600;

/// What is run when no variable names an editor, as POSIX's `more` and `crontab` do it.
const DEFAULT_EDITOR: &str = "vi";

/// A file in a directory of its own. Dropping it removes both, unless they are to be kept.
#[derive(Debug)]
pub(super) struct Draft {
    directory: PathBuf,
    path: PathBuf,
    is_kept: bool,
}

impl Draft {
    /// Makes one. Its name is that of the file in the guest, so that editors know its kind. What
    /// is not there in the guest is not there here.
    pub(super) fn create(name: &OsStr, content: Option<&[u8]>) -> anyhow::Result<Self> {
        let random = RandomState::new().build_hasher().finish();
        let directory = env::temp_dir().join(format!("agent-cli-edit-{random:016x}"));
        // It must be new: an existing one may belong to another user.
        let made = fs::DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("cannot create {}", directory.display()))?;
        let draft = Self {
            path: directory.join(name),
            directory,
            is_kept: false,
        };
        if let Some(content) = content {
            let written = draft.write(content);
            written.with_context(|| format!("cannot write {draft}"))?;
        }
        Ok(draft)
    }

    fn write(&self, content: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(DRAFT_MODE);
        options.open(&self.path)?.write_all(content)
    }

    /// What is in it; `None` if it is not there.
    pub(super) fn read(&self) -> anyhow::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {self}")),
        }
    }

    /// Runs the user's editor on it, to its end.
    pub(super) async fn edit(&self) -> anyhow::Result<()> {
        let editor = editor();
        let mut command = command(&editor, &self.path);
        let status = tokio::task::spawn_blocking(move || file_limit::status(&mut command)).await?;
        let status = status.with_context(|| format!("cannot run {}", editor.display()))?;
        if status.success() {
            Ok(())
        } else {
            bail!("the editor ended with {status}: nothing was written")
        }
    }

    /// Leaves it there when this is dropped.
    pub(super) const fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl std::fmt::Display for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&output::escape(self.path.as_os_str().as_encoded_bytes()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            // An editor's own files go too. What cannot be removed is in a private directory.
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

/// The variables hold a command with options, for a shell to cut into words.
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
    fn a_draft_is_private_has_its_name_and_goes() {
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
    fn a_new_file_is_not_there_until_the_editor_writes_it() {
        let draft = Draft::create("new".as_ref(), None).unwrap();
        assert_eq!(draft.read().unwrap(), None);
    }

    #[test]
    fn an_editor_can_have_options_and_a_path_can_have_blanks() {
        let mut command = command("printf '%s|'".as_ref(), Path::new("/a b/-c"));
        assert_eq!(command.output().unwrap().stdout, b"/a b/-c|");
    }
}
