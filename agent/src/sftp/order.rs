//! Which requests of a session may run at the same time: pure bookkeeping, no threads.
//!
//! draft-ietf-secsh-filexfer-02, section 4.1 of its later versions, says what is promised: requests
//! for the same file have the results they would have one at a time. So parts of one open file that
//! overlap keep their order if one of them is written, writes to one file keep theirs in any case,
//! closing waits for everything before it, and a path keeps its order with a change there, above it,
//! or right in it. What links do to paths is not looked at.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::defaults;

/// What a request uses.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim {
    files: [Option<FileClaim>; 2],
    paths: [Option<Bytes>; 2],
    /// Whether the paths may lead to something else afterwards, or to something changed.
    changes: bool,
    /// Whether the paths are directories of which files are used.
    inside: bool,
}

/// A part of an open file.
#[derive(Debug, Clone)]
struct FileClaim {
    handle: u64,
    start: u64,
    end: u64,
    changes: bool,
    /// The path it was opened by, if the file changes.
    path: Option<Bytes>,
}

impl Claim {
    /// Something that is only looked at.
    pub(super) fn reads(self, handle: u64, start: u64, length: u64) -> Self {
        self.with(FileClaim {
            handle,
            start,
            end: start.saturating_add(length),
            changes: false,
            path: None,
        })
    }

    /// Something that is changed, in a file that was opened by `path`.
    pub(super) fn writes(self, handle: u64, start: u64, length: u64, path: Option<Bytes>) -> Self {
        self.with(FileClaim {
            handle,
            start,
            end: start.saturating_add(length),
            changes: true,
            path,
        })
    }

    /// Paths that are only looked at.
    pub(super) fn looks_at(path: &Bytes) -> Self {
        Self {
            paths: [Some(path.clone()), None],
            ..Self::default()
        }
    }

    /// Paths where something changes.
    pub(super) fn changes(first: &Bytes, second: Option<&Bytes>) -> Self {
        Self {
            paths: [Some(first.clone()), second.cloned()],
            changes: true,
            ..Self::default()
        }
    }

    /// The paths are directories, and used are files in them.
    pub(super) fn inside(mut self) -> Self {
        self.inside = true;
        self
    }

    fn with(mut self, claim: FileClaim) -> Self {
        let [first, second] = &mut self.files;
        *(if first.is_none() { first } else { second }) = Some(claim);
        self
    }

    fn conflicts(&self, other: &Self) -> bool {
        let files = |claim: &Self| claim.files.clone().into_iter().flatten();
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

    fn uses(&self, handle: u64) -> bool {
        self.files
            .iter()
            .flatten()
            .any(|file| file.handle == handle)
    }

    fn handles(&self) -> impl Iterator<Item = u64> {
        self.files.iter().flatten().map(|file| file.handle)
    }
}

impl FileClaim {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.start < other.end && other.start < self.end;
        // Writes to one file are answered in their order: paramiko throws away a reply that comes
        // before another one, and waits for it for ever.
        self.handle == other.handle
            && (self.changes && other.changes || (self.changes || other.changes) && overlap)
    }
}

/// Whether `path` may mean something else after a change at `changed`: it is that, or below it, or
/// the directory it is in.
fn is_affected(path: &[u8], changed: &[u8]) -> bool {
    if is_unclear(path, changed) {
        return true;
    }
    let (path, changed) = (parts(path), parts(changed));
    let parent = changed.split_last().map(|(_, parent)| parent);
    path.starts_with(&changed) || Some(&path[..]) == parent
}

/// Whether both are the same path.
fn is_same(first: &[u8], second: &[u8]) -> bool {
    is_unclear(first, second) || parts(first) == parts(second)
}

/// Whether words alone cannot tell how two paths are related.
fn is_unclear(first: &[u8], second: &[u8]) -> bool {
    let climbs = |path: &[u8]| parts(path).contains(&&b".."[..]);
    first.starts_with(b"/") != second.starts_with(b"/") || climbs(first) || climbs(second)
}

fn parts(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect()
}

/// The requests that run, and those that wait for them, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Order<J> {
    running: Vec<Running>,
    waiting: VecDeque<(Claim, J)>,
    last: u64,
}

/// A request that runs.
#[derive(Debug)]
struct Running {
    name: u64,
    claim: Claim,
    /// Whether it is one of those that are done one after the other, by one thread.
    lands: bool,
}

impl<J> Default for Order<J> {
    fn default() -> Self {
        Self {
            running: Vec::new(),
            waiting: VecDeque::new(),
            last: 0,
        }
    }
}

impl<J> Order<J> {
    /// Whether a request that has just come may run.
    pub(super) fn may_start(&self, claim: &Claim) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
            || self.is_free(claim, self.waiting.len())
    }

    /// Whether `claim` conflicts neither with what runs nor with the first `ahead` that wait. Those
    /// for a handle that is used much already wait as well: a device that hangs must not get all
    /// threads of the session.
    fn is_free(&self, claim: &Claim, ahead: usize) -> bool {
        let waiting = || self.waiting.iter().take(ahead).map(|(claim, _)| claim);
        let mut all = self.running.iter().map(|one| &one.claim).chain(waiting());
        let crowded = |handle| {
            let running = self.running.iter().filter(|one| !one.lands);
            let using = running.filter(|one| one.claim.uses(handle)).count();
            using >= defaults::MAX_SFTP_WORKERS_OF_HANDLE
        };
        !all.any(|other| claim.conflicts(other)) && !claim.handles().any(crowded)
    }

    /// Whether a request that has just come may be done behind all those that land: it waits for
    /// nobody else.
    pub(super) fn may_land(&self, claim: &Claim) -> bool {
        let running = self.running.iter().filter(|one| !one.lands);
        let waiting = self.waiting.iter().map(|(claim, _)| claim);
        let mut all = running.map(|one| &one.claim).chain(waiting);
        !all.any(|other| claim.conflicts(other))
    }

    /// Notes that a request runs, and names it.
    pub(super) fn start(&mut self, claim: Claim) -> u64 {
        self.note(claim, false)
    }

    /// The same for one that lands.
    pub(super) fn start_landing(&mut self, claim: Claim) -> u64 {
        self.note(claim, true)
    }

    fn note(&mut self, claim: Claim, lands: bool) -> u64 {
        self.last += 1;
        self.running.push(Running {
            name: self.last,
            claim,
            lands,
        });
        self.last
    }

    /// Notes that a request is done.
    pub(super) fn finish(&mut self, name: u64) {
        self.running.retain(|one| one.name != name);
    }

    /// How many run, each with a thread of its own.
    pub(super) fn running(&self) -> usize {
        let all = self.running.len();
        let landing = self.running.iter().filter(|one| one.lands).count();
        all - landing + landing.min(1)
    }

    /// Puts a request behind those it must wait for.
    pub(super) fn wait(&mut self, claim: Claim, job: J) {
        self.waiting.push_back((claim, job));
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one of those that wait may run now.
    pub(super) fn has_ready(&self) -> bool {
        self.ready().is_some()
    }

    /// Starts the first of those that wait and may run now.
    pub(super) fn start_ready(&mut self) -> Option<(u64, J)> {
        let (claim, job) = self.waiting.remove(self.ready()?)?;
        Some((self.start(claim), job))
    }

    /// Forgets those that wait.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
    }

    fn ready(&self) -> Option<usize> {
        let mut waiting = self.waiting.iter().enumerate();
        waiting
            .find(|(place, (claim, _))| self.is_free(claim, *place))
            .map(|(place, _)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(handle: u64, start: u64) -> Claim {
        Claim::default().reads(handle, start, 10)
    }

    fn write(handle: u64, start: u64) -> Claim {
        Claim::default().writes(handle, start, 10, Some(Bytes::from_static(b"/d/f")))
    }

    fn all(handle: u64) -> Claim {
        Claim::default().writes(handle, 0, u64::MAX, None)
    }

    fn path(path: &'static str) -> Bytes {
        Bytes::from_static(path.as_bytes())
    }

    fn looks(text: &'static str) -> Claim {
        Claim::looks_at(&path(text))
    }

    fn changes(text: &'static str) -> Claim {
        Claim::changes(&path(text), None)
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
        let rename = Claim::changes(&path("/a"), Some(&path("/b")));
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

    #[test]
    fn nothing_overtakes_what_it_conflicts_with() {
        let mut order = Order::default();
        let slow = order.start(read(1, 0));
        assert!(order.may_start(&read(1, 0)));
        assert!(!order.may_start(&all(1)));
        order.wait(all(1), "close");
        assert!(!order.may_start(&read(1, 0)), "it came after the close");
        order.wait(read(1, 0), "read");
        assert!(order.may_start(&read(2, 0)));
        assert!(!order.has_ready());
        order.finish(slow);
        let (close, job) = order.start_ready().unwrap();
        assert_eq!(job, "close");
        assert!(order.start_ready().is_none());
        order.finish(close);
        assert_eq!(order.start_ready().unwrap().1, "read");
        assert_eq!((order.running(), order.waiting()), (1, 0));
    }

    #[test]
    fn one_handle_does_not_get_every_thread() {
        let mut order = Order::<()>::default();
        for start in 0..defaults::MAX_SFTP_WORKERS_OF_HANDLE {
            assert!(order.may_start(&read(1, 0)), "{start}");
            order.start(read(1, 0));
        }
        assert!(!order.may_start(&read(1, 0)));
        assert!(order.may_start(&read(2, 0)));
    }

    #[test]
    fn what_lands_goes_behind_what_lands_and_behind_nothing_else() {
        let mut order = Order::default();
        let first = order.start_landing(write(1, 0));
        assert!(!order.may_start(&write(1, 10)));
        assert!(order.may_land(&write(1, 10)));
        let second = order.start_landing(write(1, 10));
        assert_eq!(order.running(), 1, "one thread does them");
        assert!(order.may_start(&read(1, 20)));
        order.wait(read(1, 10), "read");
        assert!(order.may_land(&write(1, 20)));
        assert!(!order.may_land(&write(1, 10)), "the read came before it");
        order.finish(first);
        assert!(!order.has_ready());
        order.finish(second);
        assert_eq!(order.start_ready().unwrap().1, "read");
        assert!(!order.may_land(&write(1, 10)), "it is being read");
    }
}
