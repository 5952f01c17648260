//! A control group for each command, where the guest has cgroup v2.
//!
//! A group holds whatever a command starts, also what leaves its session, so that the end of the
//! command can be the end of all of it. The groups are in one of the agent's own at the top of the
//! hierarchy, not below its service: what limits or ends the service must not limit or end the
//! commands. No controller is switched on.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{sys::signal::kill, unistd::Pid};
use tokio::{sync::Notify, time::sleep};

/// Name of the directory of all agents' groups, at the top of the hierarchy.
const TOP: &str = "vsock-agent";

/// Time between two looks at the groups that something still lives in.
const TIDY_PAUSE: Duration = Duration::from_secs(2);

/// The groups of this agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Cgroups(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// Groups whose command has ended and that something still lives in.
    left: Mutex<Vec<PathBuf>>,
    /// Told when there is one more.
    more: Notify,
}

impl Cgroups {
    /// Finds the hierarchy, and removes what agents that are gone have left empty. Without cgroup
    /// v2, or without the right to it, there are no groups, and sessions have to do.
    pub(super) fn open() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let opened = find_mount().and_then(|mount| {
            let top = mount.join(TOP);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let folder = top.join(format!("{}.{number}", std::process::id()));
            fs::create_dir_all(&folder)?;
            sweep(&top);
            Ok(folder)
        });
        match opened {
            Ok(folder) => Self(Some(Arc::new(Inner {
                folder,
                left: Mutex::default(),
                more: Notify::new(),
            }))),
            Err(error) => {
                tracing::info!(%error, "no control groups: commands are ended by their session");
                Self(None)
            }
        }
    }

    /// A new group.
    pub(super) fn create(&self, name: &str) -> Option<Cgroup> {
        let owner = self.0.clone()?;
        let path = owner.folder.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Some(Cgroup { path, owner }),
            Err(error) => {
                tracing::warn!(%error, "cannot make a control group");
                None
            }
        }
    }
}

impl Cgroups {
    /// Removes groups as they become empty, for ever. Idle while there are none to look after.
    pub(super) async fn tidy(&self) {
        let Some(inner) = &self.0 else { return };
        loop {
            inner.more.notified().await;
            while inner.remove_left() {
                sleep(TIDY_PAUSE).await;
            }
        }
    }
}

impl Inner {
    /// Removes the groups that have become empty. True if there are others.
    fn remove_left(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|path| fs::remove_dir(path).is_err());
        !left.is_empty()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.remove_left();
        // Fails while something lives in a group below it; the next agent removes it then.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The group of one command. Removed in `Drop`, or later if something lives in it.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    owner: Arc<Inner>,
}

impl Cgroup {
    /// A descriptor that moves whoever writes `0` to it into the group.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn entrance(&self) -> io::Result<OwnedFd> {
        Ok(OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.procs"))?
            .into())
    }

    /// Whether anything lives in it, or in a group below it.
    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// What lives in it, groups below it included.
    pub(super) fn members(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .map(Pid::from_raw),
            );
            let below = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        pids
    }

    /// Kills everything in it at once (Linux 5.14), or one by one.
    pub(super) fn kill(&self) {
        let whole = OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.kill"))
            .and_then(|mut file| file.write_all(b"1"));
        if whole.is_err() {
            for pid in self.members() {
                // It may have ended since, and that is what was wanted.
                let _ = kill(pid, nix::sys::signal::SIGKILL);
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_err() {
            let mut left = self
                .owner
                .left
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            left.push(self.path.clone());
            self.owner.more.notify_one();
        }
    }
}

/// Where cgroup v2 is mounted.
fn find_mount() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    parse_mounts(&mounts).ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))
}

fn parse_mounts(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let is_cgroup2 = kind.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Removes the empty groups of agents that no longer run.
fn sweep(top: &Path) {
    for agent in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = agent.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse().ok());
        let is_gone = pid.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_err());
        if is_gone {
            for group in fs::read_dir(agent.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(agent.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_other_mounts() {
        let text = "24 1 0:22 / /sys rw shared:2 - sysfs sysfs rw\n\
                    31 24 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mounts(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            parse_mounts("24 1 0:22 / /sys rw - sysfs cgroup2 rw\n"),
            None
        );
    }
}
