//! What a request reads and changes, and which requests conflict in it. What symbolic links do to
//! paths is not looked at.

use bytes::Bytes;

/// The files and paths that a request uses.
#[derive(Debug, Clone, Default)]
pub(super) struct AccessSet {
    files: [Option<FileAccess>; 2],
    paths: [Option<Bytes>; 2],
    /// Whether the paths may lead to another or a changed file afterwards.
    changes: bool,
    /// Whether the paths are directories, and the request uses files in them.
    inside: bool,
}

/// A range of an open file.
#[derive(Debug, Clone)]
struct FileAccess {
    handle: u64,
    start: u64,
    end: u64,
    changes: bool,
    /// The path it was opened by, if the file changes.
    path: Option<Bytes>,
}

impl AccessSet {
    /// Adds a range that is read.
    pub(super) fn reads(self, handle: u64, start: u64, length: u64) -> Self {
        self.with(FileAccess {
            handle,
            start,
            end: start.saturating_add(length),
            changes: false,
            path: None,
        })
    }

    /// Adds a range that is changed, in a file that was opened by `path`.
    pub(super) fn writes(self, handle: u64, start: u64, length: u64, path: Option<Bytes>) -> Self {
        self.with(FileAccess {
            handle,
            start,
            end: start.saturating_add(length),
            changes: true,
            path,
        })
    }

    /// A path that is read.
    pub(super) fn reads_path(path: &Bytes) -> Self {
        Self {
            paths: [Some(path.clone()), None],
            ..Self::default()
        }
    }

    /// Paths that change.
    pub(super) fn changes(first: &Bytes, second: Option<&Bytes>) -> Self {
        Self {
            paths: [Some(first.clone()), second.cloned()],
            changes: true,
            ..Self::default()
        }
    }

    /// Marks the paths as directories in which files are used.
    pub(super) fn inside(mut self) -> Self {
        self.inside = true;
        self
    }

    fn with(mut self, access: FileAccess) -> Self {
        let [first, second] = &mut self.files;
        *(if first.is_none() { first } else { second }) = Some(access);
        self
    }

    /// Whether the order of the two requests matters.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        let files = |access: &Self| access.files.clone().into_iter().flatten();
        let file = files(self).any(|mine| files(other).any(|theirs| mine.conflicts(&theirs)));
        file || self.paths_conflict(other)
            || self.changes_file_of(other)
            || other.changes_file_of(self)
    }

    fn paths_conflict(&self, other: &Self) -> bool {
        let mut mine = self.paths.iter().flatten();
        mine.any(|mine| {
            let mut theirs = other.paths.iter().flatten();
            theirs.any(|theirs| {
                self.changes && is_affected(theirs, mine)
                    || other.changes && is_affected(mine, theirs)
            })
        })
    }

    /// Whether it changes an open file whose path the other one uses.
    fn changes_file_of(&self, other: &Self) -> bool {
        let files = self.files.iter().flatten();
        let mut changed = files.filter_map(|file| file.path.as_ref());
        changed.any(|mine| {
            let mut theirs = other.paths.iter().flatten();
            theirs.any(|theirs| {
                if other.inside {
                    is_affected(mine, theirs)
                } else {
                    is_same(mine, theirs)
                }
            })
        })
    }

    /// Whether it uses a handle.
    pub(super) fn uses(&self, handle: u64) -> bool {
        self.files
            .iter()
            .flatten()
            .any(|file| file.handle == handle)
    }

    /// The handles that it uses.
    pub(super) fn handles(&self) -> impl Iterator<Item = u64> {
        self.files.iter().flatten().map(|file| file.handle)
    }
}

impl FileAccess {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.start < other.end && other.start < self.end;
        // Writes to one file are answered in their order: paramiko drops a reply that comes before
        // an earlier one, and waits for it for ever.
        self.handle == other.handle
            && (self.changes && other.changes || (self.changes || other.changes) && overlap)
    }
}

/// Whether `path` may mean something else after a change at `changed`: it is that, or below it, or
/// the directory it is in.
fn is_affected(path: &[u8], changed: &[u8]) -> bool {
    if is_ambiguous(path, changed) {
        return true;
    }
    let (path, changed) = (parts(path), parts(changed));
    let parent = changed.split_last().map(|(_, parent)| parent);
    path.starts_with(&changed) || Some(&path[..]) == parent
}

/// Whether both are the same path.
fn is_same(first: &[u8], second: &[u8]) -> bool {
    is_ambiguous(first, second) || parts(first) == parts(second)
}

/// Whether the paths alone do not tell how they are related.
fn is_ambiguous(first: &[u8], second: &[u8]) -> bool {
    let climbs = |path: &[u8]| parts(path).contains(&&b".."[..]);
    first.starts_with(b"/") != second.starts_with(b"/") || climbs(first) || climbs(second)
}

fn parts(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::sftp) fn read(handle: u64, start: u64) -> AccessSet {
        AccessSet::default().reads(handle, start, 10)
    }

    pub(in crate::sftp) fn write(handle: u64, start: u64) -> AccessSet {
        AccessSet::default().writes(handle, start, 10, Some(Bytes::from_static(b"/d/f")))
    }

    pub(in crate::sftp) fn all(handle: u64) -> AccessSet {
        AccessSet::default().writes(handle, 0, u64::MAX, None)
    }

    fn path(path: &'static str) -> Bytes {
        Bytes::from_static(path.as_bytes())
    }

    fn looks(text: &'static str) -> AccessSet {
        AccessSet::reads_path(&path(text))
    }

    fn changes(text: &'static str) -> AccessSet {
        AccessSet::changes(&path(text), None)
    }

    #[test]
    fn parts_of_a_file_conflict_when_they_overlap_and_one_is_written() {
        assert!(!read(1, 0).conflicts(&read(1, 5)));
        assert!(read(1, 0).conflicts(&write(1, 9)));
        assert!(!read(1, 0).conflicts(&write(1, 10)));
        assert!(write(1, 0).conflicts(&write(1, 5)));
        assert!(!write(1, 0).conflicts(&write(2, 0)));
        assert!(all(1).conflicts(&read(1, u64::MAX - 20)));
    }

    #[test]
    fn writes_to_a_file_conflict_wherever_they_go() {
        assert!(write(1, 0).conflicts(&write(1, 1 << 40)));
        assert!(!write(1, 0).conflicts(&write(2, 0)));
    }

    #[test]
    fn paths_conflict_with_those_that_a_change_affects() {
        assert!(changes("/a").conflicts(&looks("/a/b/c")));
        assert!(looks("/a").conflicts(&changes("/a//./b/")));
        assert!(!looks("/a").conflicts(&changes("/a/b/c")));
        assert!(changes("/a").conflicts(&changes("/a/b/c")));
        assert!(!changes("/a").conflicts(&looks("/ab")));
        assert!(!looks("/a").conflicts(&looks("/a")));
        assert!(changes("/a").conflicts(&looks("b")), "b may be in /a");
        assert!(changes("/a").conflicts(&looks("/b/../a")));
        let rename = AccessSet::changes(&path("/a"), Some(&path("/b")));
        assert!(rename.conflicts(&looks("/b")));
    }

    #[test]
    fn a_file_that_is_written_conflicts_with_its_path() {
        assert!(write(1, 0).conflicts(&looks("/d/f")));
        assert!(changes("/d/./f").conflicts(&write(1, 0)));
        assert!(!write(1, 0).conflicts(&looks("/d")));
        assert!(!write(1, 0).conflicts(&looks("/d/g")));
        assert!(!read(1, 0).conflicts(&changes("/d/f")));
        assert!(write(1, 0).conflicts(&looks("/d").inside()));
        assert!(!write(1, 0).conflicts(&looks("/e").inside()));
    }
}
