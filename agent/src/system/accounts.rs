//! Users and groups, read from `/etc/passwd` and `/etc/group`.
//!
//! The C library's look-up (NSS) loads libraries at run time, which a static binary cannot. So users of a
//! directory service are not found by name, only by number.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{FileStat, fstat},
};
use vsock_agent_protocol::id;

use crate::system::blocking::run_blocking;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Look up a path in the kernel's cache only, and fail with `EAGAIN` otherwise (`openat2(2)`, Linux 5.12).
const RESOLVE_CACHED: u64 = 0x20;

/// Minimum age of a file's last change for its contents to be kept. Two changes within the resolution of the
/// time, 10 ms at most (`CONFIG_HZ`) and 2 s on FAT, may leave the same metadata.
const SETTLED: Duration = Duration::from_secs(2);

/// The accounts that [`Accounts::current`] has read, with the metadata of their files.
static KEPT: Mutex<Option<(Identities, Arc<Accounts>)>> = Mutex::new(None);

/// The contents of `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

/// One line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl Accounts {
    /// Reads the files. A missing file counts as empty: numbers need no entry.
    ///
    /// # Errors
    ///
    /// An existing file cannot be read.
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self {
            passwd: read(Path::new(PASSWD))?,
            group: read(Path::new(GROUP))?,
        })
    }

    /// As [`read`](Self::read), on a blocking thread. Files that have not changed are not read again, which
    /// does not need the thread if the kernel has their metadata.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), or there is no thread.
    pub(crate) async fn current() -> io::Result<Arc<Self>> {
        let cached = [PASSWD, GROUP].map(FileIdentity::cached);
        if let [Ok(passwd), Ok(group)] = cached
            && let Some(accounts) = kept(&[passwd, group])
        {
            return Ok(accounts);
        }
        run_blocking(Self::read_and_keep).await.flatten()
    }

    fn read_and_keep() -> io::Result<Arc<Self>> {
        // Before the contents: of those of a change meanwhile, the metadata are older.
        let identities = [PASSWD, GROUP].map(FileIdentity::of);
        let accounts = Arc::new(Self::read()?);
        if let [Ok(passwd), Ok(group)] = identities
            && [passwd, group]
                .iter()
                .flatten()
                .all(FileIdentity::is_settled)
        {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            *kept = Some(([passwd, group], Arc::clone(&accounts)));
        }
        Ok(accounts)
    }

    /// The user with this name.
    pub(crate) fn user_named(&self, name: &str) -> Option<User> {
        self.users().find(|user| user.name == name)
    }

    /// The first user with this number.
    pub(crate) fn user_numbered(&self, uid: u32) -> Option<User> {
        self.users().find(|user| user.uid == uid)
    }

    /// The number of the group with this name.
    pub(crate) fn group_named(&self, name: &str) -> Option<u32> {
        self.groups()
            .find(|group| group.name == name)
            .map(|group| group.gid)
    }

    /// The name of the first group with this number.
    pub(crate) fn group_numbered(&self, gid: u32) -> Option<String> {
        self.groups()
            .find(|group| group.gid == gid)
            .map(|group| group.name.to_owned())
    }

    /// The groups of a user: `gid`, and those with the name as a member.
    pub(crate) fn groups_of(&self, name: &str, gid: u32) -> Vec<u32> {
        let mut gids = vec![gid];
        for group in self.groups() {
            if group.members.split(',').any(|member| member == name) && !gids.contains(&group.gid) {
                gids.push(group.gid);
            }
        }
        gids
    }

    fn users(&self) -> impl Iterator<Item = User> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
            let _password = fields.next()?;
            let uid = id::parse(fields.next()?)?;
            let gid = id::parse(fields.next()?)?;
            let _comment = fields.next()?;
            let home = fields.next()?.to_owned();
            let shell = fields.next().unwrap_or_default().to_owned();
            Some(User {
                name,
                uid,
                gid,
                home,
                shell,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let _password = fields.next()?;
            let gid = id::parse(fields.next()?)?;
            Some(Group {
                name,
                gid,
                members: fields.next().unwrap_or_default(),
            })
        })
    }
}

/// The accounts read from files with these metadata.
fn kept(identities: &Identities) -> Option<Arc<Accounts>> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.as_ref().filter(|(known, _)| known == identities);
    kept.map(|(_, accounts)| Arc::clone(accounts))
}

/// Of `/etc/passwd` and `/etc/group`. `None` for a file that does not exist.
type Identities = [Option<FileIdentity>; 2];

/// The metadata of a file that a change of its contents changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: i64,
    /// Seconds and nanoseconds, as those of `changed`.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(path: &str) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same without waiting for a disk. `EAGAIN` if the path is not in the kernel's cache.
    fn cached(path: &str) -> Result<Option<Self>, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::from_bits_retain(RESOLVE_CACHED));
        match openat2(AT_FDCWD, path, how) {
            Ok(file) => Ok(Some(fstat(file)?.into())),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the last change is older than [`SETTLED`].
    fn is_settled(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok());
        let changed = changed.and_then(|(seconds, nanoseconds)| {
            UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
        });
        let age = changed.and_then(|changed| SystemTime::now().duration_since(changed).ok());
        age.is_some_and(|age| age > SETTLED)
    }
}

impl From<Metadata> for FileIdentity {
    fn from(file: Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: i64::try_from(file.size()).unwrap_or(i64::MAX),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl From<FileStat> for FileIdentity {
    fn from(file: FileStat) -> Self {
        Self {
            device: file.st_dev,
            inode: file.st_ino,
            size: file.st_size,
            modified: (file.st_mtime, file.st_mtime_nsec),
            changed: (file.st_ctime, file.st_ctime_nsec),
        }
    }
}

/// One line of `/etc/group`.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
impl Accounts {
    /// Accounts with these contents of the files.
    pub(crate) fn of(passwd: &str, group: &str) -> Self {
        Self {
            passwd: passwd.to_owned(),
            group: group.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_own_group_and_those_with_it_as_a_member() {
        let accounts = Accounts::of(
            "",
            "a:x:10:\nb:x:11:ann,bob\nc:x:12:bobby\nd:x:13:bob\nb2:x:11:bob\n",
        );
        assert_eq!(accounts.groups_of("bob", 10), [10, 11, 13]);
    }

    #[test]
    fn invalid_lines_of_passwd_and_group_are_skipped() {
        let accounts = Accounts::of("\n#x\nbob:x:no:1::/:\nann:x:7:8::/home/ann:/bin/sh\n", "");
        assert_eq!(accounts.user_numbered(7).unwrap().name, "ann");
        assert_eq!(accounts.user_named("bob"), None);
    }

    #[test]
    fn the_metadata_are_the_same_with_and_without_the_cache() {
        assert_eq!(
            FileIdentity::cached(PASSWD),
            Ok(FileIdentity::of(PASSWD).unwrap())
        );
        assert_eq!(
            FileIdentity::of("/etc/passwd/none")
                .unwrap_err()
                .raw_os_error(),
            Some(libc::ENOTDIR)
        );
        assert_eq!(FileIdentity::of("/nowhere").unwrap(), None);
    }

    #[test]
    fn a_file_changed_in_place_or_replaced_has_another_identity_and_is_not_settled() {
        let path = std::env::temp_dir().join(format!("accounts-{}", std::process::id()));
        let text = path.to_str().unwrap();
        let identity = || FileIdentity::of(text).unwrap().unwrap();
        fs::write(&path, "a").unwrap();
        let first = identity();
        assert!(!first.is_settled());
        fs::write(&path, "bb").unwrap();
        let second = identity();
        assert_ne!(first, second);
        // As `vipw` and `usermod` write: a new file with the name of the old one.
        let new = path.with_extension("new");
        fs::write(&new, "cc").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_ne!(identity(), second);
        fs::remove_file(&path).unwrap();
        assert_eq!(FileIdentity::of(text).unwrap(), None);
        let old = FileIdentity {
            changed: (0, 0),
            ..second
        };
        assert!(old.is_settled());
    }

    #[tokio::test]
    async fn the_current_accounts_are_those_of_the_files() {
        for _ in 0..3 {
            let current = Accounts::current().await.unwrap();
            let read = Accounts::read().unwrap();
            assert_eq!(
                (&current.passwd, &current.group),
                (&read.passwd, &read.group)
            );
        }
    }

    #[test]
    fn minus_one_is_not_a_valid_uid_or_gid() {
        let accounts = Accounts::of(
            "a:x:4294967295:1::/:\nb:x:1:4294967295::/:\n",
            "a:x:4294967295:b\n",
        );
        assert_eq!(accounts.user_named("a"), None);
        assert_eq!(accounts.user_named("b"), None);
        assert_eq!(accounts.group_named("a"), None);
        assert_eq!(accounts.groups_of("b", 1), [1]);
    }

    #[test]
    fn a_user_may_have_sixty_four_groups() {
        let group: String = (0..64).map(|gid| format!("g{gid}:x:{gid}:bob\n")).collect();
        assert_eq!(Accounts::of("", &group).groups_of("bob", 0).len(), 64);
    }
}
