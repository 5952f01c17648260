//! Stores each instance in a file. A lock file serializes the processes that write.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use uuid::Uuid;

use super::{Assignment, Instance, InstanceError, Remark, random_uuid};
use vsock_agent_files::{private_directory, write_whole};
use vsock_agent_protocol::guest_api::Devices;

/// The first line of each file.
const HEADER: &str = "# Written by `agent-cli config`; comments are not kept.\n";

/// A directory with a file for each instance.
#[derive(Debug, Clone)]
pub struct InstanceStore {
    directory: PathBuf,
}

/// Identifies a version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    bytes: u64,
    /// `st_ctim`, which `write(2)` changes, and also `chmod(2)` and `chown(2)`: whether a private key
    /// is accepted depends on mode and owner.
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file; `None` if it does not exist.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The content of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Stored {
    name: String,
    uuid: Uuid,
    instance_id: Option<String>,
    hostname: Option<String>,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    devices: Devices,
}

impl InstanceStore {
    /// The store in `directory`, which is created when it is first written to.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The path of an instance's file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.toml"))
    }

    /// Reads an instance; `None` if it has no file. Blocks on the file.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`], [`StoreError::Format`] or [`StoreError::Content`].
    pub fn load(&self, name: &str) -> Result<Option<Instance>, StoreError> {
        let path = self.path(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::file("read", path, source)),
        };
        let stored: Stored = toml_edit::de::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            StoreError::Format {
                path: path.clone(),
                line: before.map_or(1, |before| before.matches('\n').count() + 1),
                what: error.message().to_owned(),
            }
        })?;
        stored
            .check()
            .map(Some)
            .map_err(|source| StoreError::Content { path, source })
    }

    /// Reads an instance, or creates it if it has no file. If the file was another machine's, the
    /// instance gets a new instance-id. Blocks on the file.
    ///
    /// # Errors
    ///
    /// As [`InstanceStore::load`], and those of writing.
    pub fn load_or_create(&self, name: &str) -> Result<Instance, StoreError> {
        match self.load(name)? {
            Some(instance) if instance.name == name => Ok(instance),
            _ => Ok(self.change(name, &[])?.0),
        }
    }

    /// As [`InstanceStore::load_or_create`], but creates an instance only if `may_create` returns true;
    /// else returns `None`. `may_create` is called with the store's lock held, so that the instance is
    /// not [removed](InstanceStore::remove) meanwhile.
    ///
    /// # Errors
    ///
    /// As [`InstanceStore::load_or_create`].
    pub(crate) fn load_or_create_if(
        &self,
        name: &str,
        may_create: impl FnOnce() -> bool,
    ) -> Result<Option<Instance>, StoreError> {
        if let Some(instance) = self.load(name)?
            && instance.name == name
        {
            return Ok(Some(instance));
        }
        let _lock = self.lock()?;
        if !may_create() {
            return Ok(None);
        }
        Ok(Some(self.change_locked(name, &[])?.0))
    }

    /// Makes all of these changes to an instance, or none. Blocks on the file, and on other processes
    /// that write to the store.
    ///
    /// # Errors
    ///
    /// As [`InstanceStore::load_or_create`], and [`StoreError::Refused`] for an invalid change. Nothing
    /// has changed then.
    pub fn change(
        &self,
        name: &str,
        changes: &[Assignment],
    ) -> Result<(Instance, Vec<Remark>), StoreError> {
        let _lock = self.lock()?;
        self.change_locked(name, changes)
    }

    fn change_locked(
        &self,
        name: &str,
        changes: &[Assignment],
    ) -> Result<(Instance, Vec<Remark>), StoreError> {
        let old = self.load(name)?;
        let refused = StoreError::Refused;
        let mut instance = match old.clone() {
            Some(instance) => instance,
            None => Instance::new(name).map_err(refused)?,
        };
        if instance.name != name {
            name.clone_into(&mut instance.name);
            instance.uuid = random_uuid().map_err(refused)?;
        }
        let remarks = instance.apply(changes).map_err(refused)?;
        if old.as_ref() != Some(&instance) {
            let path = self.path(name);
            toml_edit::ser::to_string_pretty(&instance)
                .map_err(io::Error::other)
                .and_then(|text| write_whole(&path, (HEADER.to_owned() + &text).as_bytes(), 0o600))
                .map_err(|source| StoreError::file("write", path, source))?;
        }
        Ok((instance, remarks))
    }

    /// Removes an instance. False if it has no file. Blocks on the file, and on other processes that
    /// write to the store.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`] with the error of `unlink(2)` or of locking.
    pub fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let _lock = self.lock()?;
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoreError::file("write", path, source)),
        }
    }

    /// Waits for the lock of the store. Closing the file releases it.
    fn lock(&self) -> Result<fs::File, StoreError> {
        let path = self.directory.join(".lock");
        let lock = || {
            private_directory(&self.directory)?;
            let mut options = fs::OpenOptions::new();
            let file = options.create(true).append(true).open(&path)?;
            file.lock().map(|()| file)
        };
        lock().map_err(|source| StoreError::file("write", path.clone(), source))
    }
}

impl Stored {
    /// Applies the rules for keys and values to the file, which may have been written by hand.
    fn check(self) -> Result<Instance, InstanceError> {
        let mut instance = Instance::empty(self.name, self.uuid);
        let devices = self.devices.into_iter().flat_map(|(name, device)| {
            let full = move |(key, value)| (format!("devices.{name}.{key}"), Some(value));
            device.into_iter().map(full)
        });
        let config = self
            .config
            .into_iter()
            .map(|(key, value)| (key, Some(value)));
        let others = [
            ("instance-id".to_owned(), self.instance_id),
            ("hostname".to_owned(), self.hostname),
        ];
        instance.apply(&Vec::from_iter(config.chain(devices).chain(others)))?;
        // Reading does not change the instance-id.
        instance.uuid = self.uuid;
        Ok(instance)
    }
}

/// Why an instance cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Its file, or the lock beside it, cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// Its file is not TOML with the expected keys.
    #[error("{}: line {line}: {what}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// Its file has a key or value that is refused.
    #[error("{} is invalid", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: InstanceError,
    },
    /// The change is refused.
    #[error(transparent)]
    Refused(InstanceError),
}

impl StoreError {
    const fn file(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self::File {
            action,
            path,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Folder(InstanceStore);

    impl Folder {
        fn new(what: &str) -> Self {
            let name = format!("instances-{what}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Self(InstanceStore::new(path))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.directory);
        }
    }

    fn set(key: &str, value: &str) -> Assignment {
        (key.to_owned(), Some(value.to_owned()))
    }

    #[test]
    fn an_instance_is_read_as_it_was_written() {
        let Folder(store) = &Folder::new("again");
        assert_eq!(store.load("demo").unwrap(), None);
        let changes = [
            set("user.odd.ä€\"'.#", "a\r\nb\t\u{7f}\u{1}\"\"\"'''\\ €☃\n\n"),
            set("user.user-data", "#cloud-config\nruncmd:\n  - [a]\n"),
            set("devices.eth0.type", "nic"),
            set("devices.eth0.boot.priority", "1"),
            set("hostname", "web"),
            set("instance-id", "i-1"),
        ];
        let (written, _) = store.change("demo", &changes).unwrap();
        assert_eq!(store.load("demo").unwrap(), Some(written));
        let mode = fs::metadata(store.path("demo"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn load_or_create_creates_an_instance_once() {
        let Folder(store) = &Folder::new("made");
        let made = store.load_or_create("demo").unwrap();
        assert_eq!(store.load_or_create("demo").unwrap(), made);
        assert!(store.remove("demo").unwrap());
        assert!(!store.remove("demo").unwrap());
    }

    #[test]
    fn load_or_create_if_does_not_create_an_unregistered_instance() {
        let Folder(store) = &Folder::new("unwanted");
        assert_eq!(store.load_or_create_if("demo", || false).unwrap(), None);
        assert!(!store.path("demo").exists());
        let made = store.load_or_create_if("demo", || true).unwrap();
        assert!(made.is_some());
        assert_eq!(store.load_or_create_if("demo", || false).unwrap(), made);
    }

    #[test]
    fn a_renamed_machine_is_a_new_instance_with_the_same_data() {
        let Folder(store) = &Folder::new("renamed");
        let (old, _) = store.change("old", &[set("user.a", "b")]).unwrap();
        fs::rename(store.path("old"), store.path("new")).unwrap();
        let new = store.load_or_create("new").unwrap();
        assert_eq!(new.name(), "new");
        assert_eq!(new.config(), old.config());
        assert_ne!(new.instance_id(), old.instance_id());
        assert_eq!(store.load_or_create("new").unwrap(), new);
    }

    #[test]
    fn a_refused_change_leaves_the_file_unchanged() {
        let Folder(store) = &Folder::new("wrong");
        store.change("demo", &[set("user.a", "b")]).unwrap();
        let before = (
            fs::read(store.path("demo")).unwrap(),
            Stamp::of(&store.path("demo")),
        );
        store
            .change("demo", &[set("user.network-config", "[]")])
            .unwrap_err();
        store.change("demo", &[set("user.a", "b")]).unwrap();
        let after = (
            fs::read(store.path("demo")).unwrap(),
            Stamp::of(&store.path("demo")),
        );
        assert_eq!(before, after);
    }

    #[test]
    fn a_file_written_by_hand_is_checked() {
        let Folder(store) = &Folder::new("hand");
        let (_, _) = store.change("demo", &[set("user.a", "b")]).unwrap();
        let good = fs::read_to_string(store.path("demo")).unwrap();
        let bad = good.replace("\"user.a\" = \"b\"", "\"user.network-config\" = \"[]\"");
        assert_ne!(good, bad);
        fs::write(store.path("demo"), bad).unwrap();
        assert!(matches!(
            store.load("demo"),
            Err(StoreError::Content { .. })
        ));
        fs::write(store.path("demo"), format!("{good}\nx = [\n")).unwrap();
        assert!(matches!(store.load("demo"), Err(StoreError::Format { line, .. }) if line > 4));
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let Folder(store) = &Folder::new("turns");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                scope.spawn(move || {
                    for number in 0..5 {
                        let key = format!("user.{writer}.{number}");
                        store.change("demo", &[set(&key, "x")]).unwrap();
                    }
                });
            }
        });
        let instance = store.load("demo").unwrap().unwrap();
        assert_eq!(instance.config().len(), 20);
    }
}
