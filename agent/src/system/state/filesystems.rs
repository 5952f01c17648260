//! The usage of file systems.
//!
//! A file system of another machine or process may never answer, and the thread that calls `statvfs(3)`
//! then cannot be ended. So each of those is probed by a thread of its own, with a time limit, and not
//! probed again while that thread waits. The runtime's blocking threads are not used, because the agent
//! could not stop before the last of them is back.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::sys::statvfs::statvfs;
use tokio::{
    sync::{Mutex as AsyncMutex, oneshot},
    time::{Instant, timeout_at},
};

use super::{mounts::Mount, sources::Sources};
use crate::{defaults, system::blocking::run_blocking};

/// Stack of a thread that makes one system call, in bytes.
const STACK_BYTES: usize = 64 * 1024;

/// A mounted file system, and its usage if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filesystem {
    pub(super) mount: Mount,
    pub(super) usage: Option<Usage>,
}

/// The usage, in bytes and files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) size: u64,
    /// Free for root.
    pub(super) free: u64,
    /// Free for everybody.
    pub(super) available: u64,
    pub(super) files: u64,
    pub(super) files_free: u64,
}

/// Measures file systems, and remembers those that hang. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Prober {
    /// One measurement at a time: a second one would take running probes for hanging ones.
    turn: Arc<AsyncMutex<()>>,
    pending: Pending,
}

type Pending = Arc<Mutex<BTreeSet<PathBuf>>>;

enum Answer {
    Here(Option<Usage>),
    Due(oneshot::Receiver<Option<Usage>>),
}

impl Prober {
    /// Measures all reported mounts, in the order of mounting.
    ///
    /// # Errors
    ///
    /// If no thread can be started, or it panicked.
    pub(super) async fn measure(&self, sources: Sources) -> io::Result<Vec<Filesystem>> {
        let _turn = self.turn.lock().await;
        let pending = Arc::clone(&self.pending);
        let deadline = Instant::now() + defaults::STATFS_TIMEOUT;
        let answers = run_blocking(move || probe_all(sources.mounts(), &pending)).await?;
        let mut filesystems = Vec::with_capacity(answers.len());
        for (mount, answer) in answers {
            let usage = match answer {
                Answer::Here(usage) => usage,
                Answer::Due(answer) => match timeout_at(deadline, answer).await {
                    Ok(usage) => usage.ok().flatten(),
                    Err(_) => {
                        let path = mount.mountpoint.display();
                        tracing::warn!(%path, "a file system does not answer and is skipped");
                        None
                    }
                },
            };
            // A file system without a size is a pseudo file system.
            if usage.is_none_or(|usage| usage.size > 0) {
                filesystems.push(Filesystem { mount, usage });
            }
        }
        Ok(filesystems)
    }
}

fn probe_all(mounts: Vec<Mount>, pending: &Pending) -> Vec<(Mount, Answer)> {
    let answers = mounts.into_iter().map(|mount| {
        let answer = if mount.is_local() {
            Answer::Here(usage(&mount.mountpoint))
        } else {
            probe_in_thread(&mount.mountpoint, pending).map_or(Answer::Here(None), Answer::Due)
        };
        (mount, answer)
    });
    answers.collect()
}

/// `None` if its last probe is still pending, or too many others are.
fn probe_in_thread(path: &Path, pending: &Pending) -> Option<oneshot::Receiver<Option<Usage>>> {
    let question = Probe::new(path, pending)?;
    let (answer, due) = oneshot::channel();
    let work = move || {
        let usage = usage(&question.path);
        drop(question);
        // The receiver may have been dropped.
        let _ = answer.send(usage);
    };
    let thread = thread::Builder::new().name("statvfs".to_owned());
    thread.stack_size(STACK_BYTES).spawn(work).ok()?;
    Some(due)
}

/// A pending probe of a file system, until `Drop`.
struct Probe {
    path: PathBuf,
    pending: Pending,
}

impl Probe {
    fn new(path: &Path, pending: &Pending) -> Option<Self> {
        let mut all = pending.lock().unwrap_or_else(PoisonError::into_inner);
        let may_ask = all.len() < defaults::MAX_STATFS && all.insert(path.to_owned());
        may_ask.then(|| Self {
            path: path.to_owned(),
            pending: Arc::clone(pending),
        })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let mut all = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.path);
    }
}

fn usage(path: &Path) -> Option<Usage> {
    match statvfs(path) {
        Ok(stat) => {
            let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
            Some(Usage {
                size: bytes(stat.blocks()),
                free: bytes(stat.blocks_free()),
                available: bytes(stat.blocks_available()),
                files: stat.files(),
                files_free: stat.files_free(),
            })
        }
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "cannot measure a file system");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(mountpoint: &str, kind: &str) -> Mount {
        Mount {
            source: "source".to_owned(),
            mountpoint: mountpoint.into(),
            kind: kind.to_owned(),
            is_read_only: false,
        }
    }

    #[test]
    fn the_root_has_a_size_whichever_way_it_is_asked() {
        let here = usage(Path::new("/")).unwrap();
        assert!(here.size > 0 && here.free <= here.size && here.available <= here.size);
        let pending = Pending::default();
        let due = probe_in_thread(Path::new("/"), &pending).unwrap();
        assert_eq!(due.blocking_recv().unwrap().unwrap().size, here.size);
        assert!(pending.lock().unwrap().is_empty());
    }

    #[test]
    fn one_that_fails_does_not_hide_the_others() {
        let mounts = vec![mount("/nonexistent", "ext4"), mount("/", "ext4")];
        let answers = probe_all(mounts, &Pending::default());
        assert!(matches!(answers[0].1, Answer::Here(None)));
        assert!(matches!(answers[1].1, Answer::Here(Some(_))));
    }

    #[test]
    fn what_owes_an_answer_is_not_asked_again() {
        let pending = Pending::default();
        let hanging = Probe::new(Path::new("/mnt"), &pending).unwrap();
        let answers = probe_all(vec![mount("/mnt", "nfs4"), mount("/", "nfs4")], &pending);
        assert!(matches!(answers[0].1, Answer::Here(None)));
        assert!(matches!(answers[1].1, Answer::Due(_)));
        drop(hanging);
        assert!(Probe::new(Path::new("/mnt"), &pending).is_some());
    }

    #[test]
    fn threads_that_hang_are_few() {
        let pending = Pending::default();
        let questions: Vec<_> = (0..=defaults::MAX_STATFS)
            .map(|number| Probe::new(Path::new(&format!("/{number}")), &pending))
            .collect();
        assert!(questions[defaults::MAX_STATFS].is_none());
        assert!(questions[defaults::MAX_STATFS - 1].is_some());
    }
}
