//! The last snapshot on disk, for a boot without the host.
//!
//! It is valid only on the machine that wrote it: an image of the guest's disk must not pass its keys and
//! passwords to other guests.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use data_encoding::HEXLOWER;
use nix::{
    errno::Errno,
    unistd::{UnlinkatFlags, unlinkat},
};
use serde::{Deserialize, Serialize};

use super::{InstanceData, Snapshot};
use crate::system::{
    mount_table,
    root::{Attributes, Root},
};

/// Below the guest's `/`.
const FOLDER: &str = "var/lib/vsock-agent";
const FILE: &str = "instance-data.json";

/// The UUID of the machine from SMBIOS, if there is one.
const MACHINE: &str = "sys/class/dmi/id/product_uuid";

/// Maximum size of the file, in bytes: above that of the largest snapshot in JSON.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Readable by root only: the data may contain passwords.
const ATTRIBUTES: Attributes = Attributes {
    mode: 0o600,
    uid: None,
    gid: None,
    create_only: false,
};

/// The file of the snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SavedSnapshot {
    root: PathBuf,
    machine: String,
    /// Held while the file is written or removed.
    lock: Arc<Mutex<()>>,
}

#[derive(Serialize, Deserialize)]
struct Content<S> {
    /// See [`machine`].
    machine: String,
    snapshot: S,
}

impl SavedSnapshot {
    /// The file below `root`. `None` if it would not outlive a reboot. `identity` is the directory of the
    /// agent's identity.
    pub(crate) fn new(root: &Path, identity: Option<&Path>) -> Option<Self> {
        if !mount_table::outlives_reboot(root, &Path::new("/").join(FOLDER)) {
            return None;
        }
        Some(Self {
            root: root.to_owned(),
            machine: machine(root, identity),
            lock: Arc::default(),
        })
    }

    /// Whether there is a file.
    pub(crate) fn exists(&self) -> bool {
        self.root.join(FOLDER).join(FILE).is_file()
    }

    /// Reads the snapshot. A file that is invalid or of another machine is removed. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Root::read`], and the errno of `unlinkat(2)`.
    pub(crate) fn load(&self) -> io::Result<Option<Snapshot>> {
        let path = Path::new(FOLDER).join(FILE);
        let text = match Root::open(&self.root)?.read(&path, MAX_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        match serde_json::from_slice::<Content<Snapshot>>(&text) {
            Ok(content) if content.machine == self.machine => Ok(Some(content.snapshot)),
            _ => self.remove().map(|()| None),
        }
    }

    /// Replaces the file atomically if `snapshot` is the current one of `data`: data that were disabled
    /// meanwhile are not saved. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Root::write`].
    pub(crate) fn save_if_current(
        &self,
        snapshot: &Arc<Snapshot>,
        data: &InstanceData,
    ) -> io::Result<()> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let current = data.snapshot();
        if current.is_some_and(|current| Arc::ptr_eq(&current, snapshot)) {
            self.save(snapshot)
        } else {
            Ok(())
        }
    }

    fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        let content = Content {
            machine: self.machine.clone(),
            snapshot,
        };
        let text = serde_json::to_vec(&content)?;
        let folder = Root::open(&self.root)?.below(Path::new(FOLDER))?;
        let same = folder.read(Path::new(FILE), text.len() + 1);
        if same.is_ok_and(|same| same == text) {
            return Ok(());
        }
        folder.write(Path::new(FILE), &text, ATTRIBUTES)?;
        Ok(())
    }

    /// Removes the file, after a write in progress. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Root::folder`], and the errno of `unlinkat(2)`.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = match Root::open(&self.root)?.folder(Path::new(FOLDER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            folder => folder?,
        };
        match unlinkat(&folder, FILE, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// An identifier of the machine: the UUID of SMBIOS and the SHA-256 of the agent's certificate.
fn machine(root: &Path, identity: Option<&Path>) -> String {
    let number = fs::read_to_string(root.join(MACHINE)).unwrap_or_default();
    let certificate = identity.and_then(|folder| fs::read(folder.join("agent.crt")).ok());
    let digest = ring::digest::digest(&ring::digest::SHA256, &certificate.unwrap_or_default());
    format!("{} {}", number.trim(), HEXLOWER.encode(digest.as_ref()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::Map;
    use vsock_agent_protocol::guest_api::{GuestInfo, GuestState};

    use super::*;

    /// An empty root on a disk, removed in `Drop`.
    struct TestRoot(PathBuf);

    impl TestRoot {
        fn new(name: &str, kind: &str) -> Self {
            let name = format!("agent-saved-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(path.join("proc/self")).unwrap();
            fs::create_dir_all(path.join("sys/class/dmi/id")).unwrap();
            fs::write(
                path.join("proc/self/mounts"),
                format!("x / {kind} rw 0 0\n"),
            )
            .unwrap();
            fs::write(path.join(MACHINE), "one\n").unwrap();
            Self(path)
        }

        fn saved(&self) -> SavedSnapshot {
            SavedSnapshot::new(&self.0, None).unwrap()
        }

        fn file(&self) -> PathBuf {
            self.0.join(FOLDER).join(FILE)
        }
    }

    impl Drop for TestRoot {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn snapshot() -> Snapshot {
        Snapshot {
            info: GuestInfo::new("none".to_owned(), GuestState::Started),
            config: [("user.a".to_owned(), "é".to_owned())].into(),
            meta_data: "instance-id: i\n".to_owned(),
            devices: Map::new(),
        }
    }

    #[test]
    fn a_saved_snapshot_is_loaded_on_the_same_machine_only() {
        let root = TestRoot::new("same", "ext4");
        assert_eq!(root.saved().load().unwrap(), None);
        root.saved().save(&snapshot()).unwrap();
        assert_eq!(root.saved().load().unwrap(), Some(snapshot()));
        let mode = fs::metadata(root.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::write(root.0.join(MACHINE), "another\n").unwrap();
        assert_eq!(root.saved().load().unwrap(), None);
        assert!(!root.file().exists());
    }

    #[test]
    fn a_snapshot_that_is_no_longer_current_is_not_saved() {
        let root = TestRoot::new("gone", "ext4");
        let data = InstanceData::new();
        data.publish(snapshot());
        let current = data.snapshot().unwrap();
        data.state
            .send_replace(super::super::Availability::Disabled);
        root.saved().remove().unwrap();
        root.saved().save_if_current(&current, &data).unwrap();
        assert!(!root.file().exists());
        data.publish(snapshot());
        let current = data.snapshot().unwrap();
        root.saved().save_if_current(&current, &data).unwrap();
        assert!(root.file().exists());
    }

    #[test]
    fn an_invalid_saved_snapshot_is_removed() {
        let root = TestRoot::new("odd", "ext4");
        root.saved().save(&snapshot()).unwrap();
        fs::write(root.file(), "{").unwrap();
        assert_eq!(root.saved().load().unwrap(), None);
        assert!(!root.file().exists());
        root.saved().remove().unwrap();
    }

    #[test]
    fn no_snapshot_is_saved_on_a_volatile_file_system() {
        let root = TestRoot::new("memory", "tmpfs");
        assert!(SavedSnapshot::new(&root.0, None).is_none());
    }
}
