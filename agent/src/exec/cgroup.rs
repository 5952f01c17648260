//! A control group per command, if the kernel has cgroup v2 and the agent is root. If cgroup v2 is not
//! mounted, as in guests with cgroup v1, the agent uses a detached mount of its own.
//!
//! A group contains all processes that a command starts, also those that leave its session, so that
//! they can be ended with it. The groups are below one of the agent's at the top of the hierarchy, not
//! below its service: limits and the end of the service must not apply to commands. No controller is
//! enabled.

#![allow(
    unsafe_code,
    reason = "system calls that the C library has no functions for"
)]

use std::{
    ffi::OsStr,
    fs::{self, DirEntry, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use tokio::{
    io::{Interest, unix::AsyncFd},
    select,
    sync::Notify,
    task::JoinSet,
    time::sleep,
};

use crate::system::{blocking::run_blocking, mount_table};

/// Name of the directory of all agents' groups, at the top of the hierarchy.
const TOP: &str = "vsock-agent";

/// `include/uapi/linux/mount.h`.
const FSOPEN_CLOEXEC: libc::c_int = 1;
const FSMOUNT_CLOEXEC: libc::c_int = 1;
const FSCONFIG_CMD_CREATE: libc::c_int = 6;

/// Time until the next attempt to remove a group that has processes, if the agent has no descriptor to wait for
/// their end.
const CLEAN_UP_INTERVAL: Duration = Duration::from_secs(2);

/// The line of `cgroup.events` of a group that has processes, or below which one has.
const POPULATED: &str = "populated 1";

/// Larger than `cgroup.events`, which has two lines of 11 and 8 bytes.
const EVENTS_BYTES: usize = 128;

/// The groups of this agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Cgroups(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// The agent's own mount, if `folder` is in one.
    _mount: Option<OwnedFd>,
    /// Groups whose command has ended.
    left: Mutex<Vec<PathBuf>>,
    /// Notified when a group is added to `left`.
    more: Notify,
}

impl Cgroups {
    /// Finds or mounts the hierarchy, and removes empty groups of agents that no longer run. Without
    /// cgroup v2 or without permission there are no groups.
    pub(super) fn open() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let found = find_mount().map(|path| (path, None));
        let opened = found.or_else(|_| own_mount()).and_then(|(path, mount)| {
            let top = path.join(TOP);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let folder = top.join(format!("{}.{number}", std::process::id()));
            fs::create_dir_all(&folder)?;
            remove_stale(&top);
            Ok((folder, mount))
        });
        match opened {
            Ok((folder, mount)) => Self(Some(Arc::new(Inner {
                folder,
                _mount: mount,
                left: Mutex::default(),
                more: Notify::new(),
            }))),
            Err(error) => {
                tracing::info!(%error, "no control groups: commands are ended by their session");
                Self(None)
            }
        }
    }

    /// Creates a group.
    pub(super) fn create(&self, name: &str) -> Option<Cgroup> {
        let owner = self.0.clone()?;
        let path = owner.folder.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Some(Cgroup { path, owner }),
            Err(error) => {
                tracing::warn!(%error, "cannot create a control group");
                None
            }
        }
    }
}

impl Cgroups {
    /// Removes groups as they become empty. Never returns.
    pub(super) async fn clean_up(&self) {
        let Some(inner) = &self.0 else { return };
        let mut populated = JoinSet::new();
        loop {
            select! {
                () = inner.more.notified() => {}
                Some(Ok(emptied)) = populated.join_next() => inner.left().push(emptied),
            }
            if inner.remove_simple() {
                continue;
            }
            let left = Arc::clone(inner);
            // On a thread: a command may have created many groups below its own. Without a thread they are removed
            // with the next one.
            let others = run_blocking(move || left.remove_left()).await;
            for path in others.unwrap_or_default() {
                populated.spawn(until_empty(path));
            }
        }
    }
}

impl Inner {
    /// Removes the groups without processes and without groups below them, as almost all are. True if there are no
    /// others.
    fn remove_simple(&self) -> bool {
        let mut left = self.left();
        left.retain(|path| fs::remove_dir(path).is_err());
        left.is_empty()
    }

    /// Removes the groups that have no processes. Returns the others.
    fn remove_left(&self) -> Vec<PathBuf> {
        let left = std::mem::take(&mut *self.left());
        let is_other =
            |path: &PathBuf| is_populated(path) || !remove_empty(path) && is_populated(path);
        left.into_iter().filter(is_other).collect()
    }

    fn left(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Fails while a group below it has processes; the next agent removes it then.
        remove_empty(&self.folder);
    }
}

/// The group of one command. Removed after it is dropped, by [`Cgroups::clean_up`].
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    owner: Arc<Inner>,
}

impl Cgroup {
    /// Its directory, in which a process can be created.
    pub(super) fn directory(&self) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags);
        Ok(options.open(&self.path)?.into())
    }

    /// Whether it or a group below it has processes.
    pub(super) fn is_populated(&self) -> bool {
        is_populated(&self.path)
    }

    /// Its processes, including those of groups below it.
    pub(super) fn members(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        for folder in subtree(&self.path) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(
                text.lines()
                    .filter_map(|line| line.parse().ok())
                    .map(Pid::from_raw),
            );
        }
        pids
    }

    /// Whether a process is in it, or in a group below it. Its name is random and therefore unique.
    pub(super) fn has(&self, pid: Pid) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.path
            .file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| is_within(&text, name))
    }

    /// Kills all its processes at once (Linux 5.14), or one by one.
    pub(super) fn kill(&self) {
        let whole = OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.kill"))
            .and_then(|mut file| file.write_all(b"1"));
        if whole.is_err() {
            for pid in self.members() {
                let _ = kill(pid, nix::sys::signal::SIGKILL);
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Not here: the result of a command does not wait for it.
        self.owner.left().push(self.path.clone());
        self.owner.more.notify_one();
    }
}

/// Whether a process with these groups (`/proc/PID/cgroup`, `cgroups(7)`) is in one of this name, or
/// below it.
fn is_within(text: &str, name: &str) -> bool {
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified.is_some_and(|path| path.split('/').any(|part| part == name))
}

/// Whether a group or one below it has processes.
fn is_populated(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == POPULATED)
}

/// The same by its `cgroup.events`. False after an error: the group is gone.
fn has_processes(events: &AsyncFd<File>) -> bool {
    let mut text = [0; EVENTS_BYTES];
    let read = events.get_ref().read_at(&mut text, 0).unwrap_or_default();
    text[..read]
        .split(|byte| *byte == b'\n')
        .any(|line| line == POPULATED.as_bytes())
}

/// Returns a group when neither it nor a group below it has processes.
async fn until_empty(group: PathBuf) -> PathBuf {
    match watch_events(&group) {
        Ok(events) => {
            // The first read comes before the wait: the kernel notifies of changes after a read.
            while has_processes(&events) {
                match events.ready(Interest::PRIORITY).await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => break,
                }
            }
        }
        Err(_) => sleep(CLEAN_UP_INTERVAL).await,
    }
    group
}

/// Its `cgroup.events`, which has an exceptional condition after each change (`cgroups(7)`).
fn watch_events(group: &Path) -> io::Result<AsyncFd<File>> {
    let events = File::open(group.join("cgroup.events"))?;
    // SAFETY: a `File` keeps one descriptor open for as long as it lives.
    let watched = unsafe { AsyncFd::register_with_interest(events, Interest::PRIORITY) };
    Ok(watched?)
}

/// A group and all groups below it, parents first.
fn subtree(group: &Path) -> Vec<PathBuf> {
    let mut folders = vec![group.to_owned()];
    let mut next = 0;
    while let Some(folder) = folders.get(next) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let is_folder = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let below: Vec<_> = entries
            .filter(is_folder)
            .map(|entry| entry.path())
            .collect();
        folders.extend(below);
        next += 1;
    }
    folders
}

/// Removes a group without processes and the groups below it. True on success.
fn remove_empty(group: &Path) -> bool {
    let folders = subtree(group);
    let mut removed = Ok(());
    for folder in folders.iter().rev() {
        removed = fs::remove_dir(folder);
    }
    if let Err(error) = &removed {
        tracing::debug!(?group, %error, "cannot remove a control group");
    }
    removed.is_ok()
}

/// A detached mount of cgroup v2, and a path to it (`fsopen(2)`, Linux 5.2).
fn own_mount() -> io::Result<(PathBuf, Option<OwnedFd>)> {
    let kind = c"cgroup2".as_ptr();
    // SAFETY: the name ends with a null.
    let made = unsafe { libc::syscall(libc::SYS_fsopen, kind, FSOPEN_CLOEXEC) };
    let context = descriptor(made)?;
    let (fd, null) = (context.as_raw_fd(), std::ptr::null::<libc::c_char>());
    // SAFETY: takes numbers and nulls.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0)
    })?;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: takes numbers only.
    let made = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) };
    let mount = descriptor(made)?;
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Ok((path.into(), Some(mount)))
}

/// The result of a system call that returns a new descriptor.
fn descriptor(made: libc::c_long) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(Errno::result(made)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor; it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The mount point of cgroup v2.
fn find_mount() -> io::Result<PathBuf> {
    let table = fs::read("/proc/thread-self/mounts")?;
    mount_point(&table).ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))
}

fn mount_point(table: &[u8]) -> Option<PathBuf> {
    let mut mounts = mount_table::parse(table);
    let found = mounts.find(|mount| mount.kind == "cgroup2")?;
    Some(found.mountpoint)
}

/// Removes the empty groups of agents that no longer run.
fn remove_stale(top: &Path) {
    for agent in fs::read_dir(top).into_iter().flatten().flatten() {
        let name = agent.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse().ok());
        let is_gone = pid.is_some_and(|pid| kill(Pid::from_raw(pid), None).is_err());
        if is_gone {
            remove_empty(&agent.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As one in which something is mounted.
    #[test]
    fn a_group_that_is_empty_and_cannot_be_removed_is_not_tried_again() {
        let folder = std::env::temp_dir().join(format!("cgroup-stays-{}", std::process::id()));
        let (gone, stays) = (folder.join("gone"), folder.join("stays"));
        fs::create_dir_all(&gone).unwrap();
        fs::create_dir_all(&stays).unwrap();
        fs::write(stays.join("file"), "").unwrap();
        let inner = Inner {
            folder: folder.clone(),
            _mount: None,
            left: Mutex::new(vec![gone.clone(), stays.clone()]),
            more: Notify::new(),
        };
        assert!(inner.remove_left().is_empty());
        assert!(!gone.exists() && stays.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_process_is_within_its_group_and_those_above() {
        let text = "1:name=systemd:/\n0::/vsock-agent/12.0/a-b/inner\n";
        assert!(is_within(text, "a-b"));
        assert!(is_within(text, "inner"));
        assert!(!is_within(text, "a"));
        assert!(!is_within("1:cpu:/a-b\n0::/\n", "a-b"));
        assert!(!is_within("", "a-b"));
    }

    #[test]
    fn the_hierarchy_is_found_among_other_mounts() {
        let table = b"sysfs /sys sysfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n";
        assert_eq!(mount_point(table), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(b"cgroup2 /sys sysfs rw 0 0\n"), None);
    }
}
