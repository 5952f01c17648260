//! A folder in which the code under test may write to one subfolder only.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::TestFolder;

/// Where anything may happen.
const INSIDE: &str = "inside";

/// `inside` may become anything, all else must stay as it is. Gone in `Drop`.
#[derive(Debug)]
pub(super) struct ConfinedFolder {
    folder: TestFolder,
    before: Contents,
}

/// What is seen of each path: mode, size, time of change, and the contents of a file.
type Contents = BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)>;

impl ConfinedFolder {
    /// Makes one with a few things in both places.
    pub(super) fn new() -> Self {
        let folder = TestFolder::in_memory("folder");
        for path in ["inside/folder", "outside/folder"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        for path in ["inside/file", "inside/folder/file", "outside/file"] {
            fs::write(folder.path().join(path), "before").unwrap();
        }
        let before = contents(folder.path(), true);
        Self { folder, before }
    }

    /// Where anything may happen.
    pub(super) fn inside(&self) -> PathBuf {
        self.folder.path().join(INSIDE)
    }

    /// Where nothing may.
    pub(super) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    /// Nothing has changed but what may.
    pub(super) fn check(&self) {
        let mut before = self.before.clone();
        before.retain(|path, _| !path.starts_with(INSIDE));
        let after = contents(self.folder.path(), false);
        assert_eq!(before, after, "outside the folder");
    }

    /// Nothing has changed at all.
    pub(super) fn check_untouched(&self) {
        assert_eq!(self.before, contents(self.folder.path(), true));
    }
}

/// What is below `root`. What may become anything is left out unless all is wanted: it can be deeper than
/// a path is long.
fn contents(root: &Path, all: bool) -> Contents {
    let mut contents = Contents::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        if !all && name.starts_with(INSIDE) {
            continue;
        }
        let mut data = Vec::new();
        if metadata.is_dir() {
            paths.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if metadata.is_file() && !name.starts_with(INSIDE) {
            data = fs::read(&path).unwrap();
        }
        // A folder changes by what happens to the names in it, which is seen by itself.
        let times = (metadata.ctime(), metadata.ctime_nsec());
        let size = if metadata.is_dir() {
            0
        } else {
            metadata.size()
        };
        let times = if name.as_os_str().is_empty() {
            (0, 0)
        } else {
            times
        };
        contents.insert(name, (metadata.mode(), size, times.0, times.1, data));
    }
    contents
}

#[cfg(test)]
mod tests {
    use nix::{
        fcntl::{OFlag, openat},
        sys::stat::{Mode, mkdirat},
    };

    use super::*;

    #[test]
    fn confined_folder_handles_trees_deeper_than_path_max() {
        let confined = ConfinedFolder::new();
        let mut folder = std::fs::File::open(confined.inside()).unwrap().into();
        let name = "x".repeat(255);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        for _ in 0..20 {
            mkdirat(&folder, &*name, Mode::S_IRWXU).unwrap();
            folder = openat(&folder, &*name, flags, Mode::empty()).unwrap();
        }
        confined.check();
        let top = confined.folder.path().to_owned();
        drop(confined);
        assert!(!top.exists());
    }

    #[test]
    #[should_panic(expected = "outside the folder")]
    fn confined_folder_detects_changes_outside() {
        let folder = ConfinedFolder::new();
        fs::write(folder.outside().join("file"), "after").unwrap();
        folder.check();
    }
}
