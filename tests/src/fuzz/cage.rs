//! A folder for somebody who may write in one corner of it only.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::TestFolder;

/// `inside` may become anything, all else must stay as it is. Gone in `Drop`.
#[derive(Debug)]
pub(super) struct Cage {
    folder: TestFolder,
    before: Contents,
}

/// What is seen of each path: mode, size, time of change, and the contents of a file.
type Contents = BTreeMap<PathBuf, (u32, u64, i64, i64, Vec<u8>)>;

impl Cage {
    /// Makes one with a few things in both places.
    pub(super) fn new() -> Self {
        let folder = TestFolder::in_memory("cage");
        for path in ["inside/folder", "outside/folder"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        for path in ["inside/file", "inside/folder/file", "outside/file"] {
            fs::write(folder.path().join(path), "before").unwrap();
        }
        let before = contents(folder.path());
        Self { folder, before }
    }

    /// Where anything may happen.
    pub(super) fn inside(&self) -> PathBuf {
        self.folder.path().join("inside")
    }

    /// Where nothing may.
    pub(super) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    /// Nothing has changed but what may.
    pub(super) fn check(&self) {
        let (mut before, mut after) = (self.before.clone(), contents(self.folder.path()));
        for contents in [&mut before, &mut after] {
            contents.retain(|path, _| !path.starts_with("inside"));
        }
        assert_eq!(before, after, "outside the folder");
    }

    /// Nothing has changed at all.
    pub(super) fn check_untouched(&self) {
        assert_eq!(self.before, contents(self.folder.path()));
    }
}

fn contents(root: &Path) -> Contents {
    let mut contents = Contents::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let mut data = Vec::new();
        if metadata.is_dir() {
            paths.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if metadata.is_file() && !name.starts_with("inside/") {
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
