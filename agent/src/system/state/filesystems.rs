//! The usage of file systems.
//!
//! `statvfs(3)` may hang for ever on a file system of another machine or process. Each of these is probed by
//! a thread of its own, with a time limit, and not probed again while that thread is blocked. The runtime's
//! blocking threads are not used, because the runtime waits for them at shutdown.

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

/// Stack size of a thread that makes one system call, in bytes.
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
    /// Free for other users.
    pub(super) available: u64,
    pub(super) files: u64,
    pub(super) files_free: u64,
}

/// Measures file systems, and remembers those that hang. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Prober {
    /// Serializes measurements: a second one would take running probes for hanging ones.
    turn: Arc<AsyncMutex<()>>,
    pending: Pending,
}

type Pending = Arc<Mutex<BTreeSet<PathBuf>>>;

/// Receives the result of a probe. Closed without one if the file system is not probed.
type Answer = oneshot::Receiver<Option<Usage>>;

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
            let usage = match timeout_at(deadline, answer).await {
                Ok(usage) => usage.ok().flatten(),
                Err(_) => {
                    let path = mount.mountpoint.display();
                    tracing::warn!(%path, "a file system does not respond and is skipped");
                    None
                }
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
    let probes = mounts.into_iter().map(|mount| {
        let (sender, answer) = oneshot::channel();
        if mount.is_local() {
            let _ = sender.send(usage(&mount.mountpoint));
        } else {
            probe_in_thread(&mount.mountpoint, pending, sender);
        }
        (mount, answer)
    });
    probes.collect()
}

/// Does nothing if the last probe of this path is still pending, or too many others are.
fn probe_in_thread(path: &Path, pending: &Pending, sender: oneshot::Sender<Option<Usage>>) {
    let Some(probe) = Probe::new(path, pending) else {
        return;
    };
    let work = move || {
        let usage = usage(&probe.path);
        drop(probe);
        // The receiver may have been dropped.
        let _ = sender.send(usage);
    };
    let thread = thread::Builder::new().name("statvfs".to_owned());
    // Without a thread, the receiver is closed.
    let _ = thread.stack_size(STACK_BYTES).spawn(work);
}

/// A pending probe of a file system, until `Drop`.
struct Probe {
    path: PathBuf,
    pending: Pending,
}

impl Probe {
    fn new(path: &Path, pending: &Pending) -> Option<Self> {
        let mut all = pending.lock().unwrap_or_else(PoisonError::into_inner);
        let is_allowed = all.len() < defaults::MAX_STATFS && all.insert(path.to_owned());
        is_allowed.then(|| Self {
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
    use tokio::sync::oneshot::error::TryRecvError;

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
    fn the_root_file_system_has_the_same_size_in_a_thread() {
        let here = usage(Path::new("/")).unwrap();
        assert!(here.size > 0 && here.free <= here.size && here.available <= here.size);
        let pending = Pending::default();
        let (sender, answer) = oneshot::channel();
        probe_in_thread(Path::new("/"), &pending, sender);
        assert_eq!(answer.blocking_recv().unwrap().unwrap().size, here.size);
        assert!(pending.lock().unwrap().is_empty());
    }

    #[test]
    fn a_failed_probe_does_not_affect_other_file_systems() {
        let mounts = vec![mount("/nonexistent", "ext4"), mount("/", "ext4")];
        let mut answers = probe_all(mounts, &Pending::default());
        assert_eq!(answers[0].1.try_recv(), Ok(None));
        assert!(answers[1].1.try_recv().unwrap().is_some());
    }

    #[test]
    fn a_file_system_with_a_pending_probe_is_not_probed_again() {
        let pending = Pending::default();
        let hanging = Probe::new(Path::new("/mnt"), &pending).unwrap();
        let mounts = vec![mount("/mnt", "nfs4"), mount("/", "nfs4")];
        let mut answers = probe_all(mounts, &pending);
        assert_eq!(answers[0].1.try_recv(), Err(TryRecvError::Closed));
        let (_, answer) = answers.remove(1);
        assert!(answer.blocking_recv().unwrap().is_some());
        drop(hanging);
        assert!(Probe::new(Path::new("/mnt"), &pending).is_some());
    }

    #[test]
    fn the_number_of_pending_probes_is_limited() {
        let pending = Pending::default();
        let questions: Vec<_> = (0..=defaults::MAX_STATFS)
            .map(|number| Probe::new(Path::new(&format!("/{number}")), &pending))
            .collect();
        assert!(questions[defaults::MAX_STATFS].is_none());
        assert!(questions[defaults::MAX_STATFS - 1].is_some());
    }
}
