//! A seed for cloud-init's datasource `NoCloud`: a directory with up to four data files and the agent's marker file.
//!
//! It is written to a temporary directory, which is then renamed: cloud-init reads all of it or nothing.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::renameat,
    sys::stat::{Mode, mkdirat},
};

use super::Datasource;
use crate::system::root::{Attributes, Root};

/// The directory of seeds.
const PARENT: &str = "var/lib/cloud/seed";
const FOLDER: &str = "nocloud";
/// Temporary names of the new and the old seed.
const NEW: &str = ".nocloud.new";
const OLD: &str = ".nocloud.old";

/// An empty file that marks the agent's own seed. cloud-init ignores it.
const MARK: &str = ".vsock-agent";

/// Readable by root only: user-data may contain passwords.
const FILE: Attributes = Attributes {
    mode: 0o600,
    uid: None,
    gid: None,
    create_only: true,
};

/// Contents of the files. cloud-init requires the first two, even if they are empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed<'a> {
    pub(crate) meta_data: &'a str,
    pub(crate) user_data: &'a str,
    pub(crate) vendor_data: Option<&'a str>,
    pub(crate) network_config: Option<&'a str>,
}

impl Seed<'_> {
    fn files(&self) -> [(&'static str, Option<&str>); 5] {
        [
            (MARK, Some("")),
            ("meta-data", Some(self.meta_data)),
            ("user-data", Some(self.user_data)),
            ("vendor-data", self.vendor_data),
            ("network-config", self.network_config),
        ]
    }
}

/// Writes the seed below `root` unless an identical one exists.
///
/// # Errors
///
/// As [`Root::write`], and the errno of `renameat(2)`, `mkdirat(2)` and `unlinkat(2)`.
pub(crate) fn write(root: &Path, seed: &Seed<'_>) -> io::Result<()> {
    let parent = Root::open(root)?.below(Path::new(PARENT))?;
    if is_written(&parent, seed) {
        return Ok(());
    }
    remove(&parent, NEW)?;
    mkdirat(&parent, NEW, Mode::S_IRWXU)?;
    let new = parent.below(Path::new(NEW))?;
    for (name, text) in seed.files() {
        if let Some(text) = text {
            new.write(Path::new(name), text.as_bytes(), FILE)?;
        }
    }
    remove(&parent, OLD)?;
    match renameat(&parent, FOLDER, &parent, OLD) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    renameat(&parent, NEW, &parent, FOLDER)?;
    remove(&parent, OLD)
}

/// Whether there is a seed of [`write`] below `root`.
pub(crate) fn has_own_seed(root: &Path) -> bool {
    let mark = Path::new(PARENT).join(FOLDER).join(MARK);
    Root::open(root).is_ok_and(|root| root.read(&mark, 1).is_ok())
}

/// Removes the seed of [`write`] below `root`, if there is one. Other seeds are kept.
///
/// # Errors
///
/// The errno of `renameat(2)` or `unlinkat(2)`.
pub(crate) fn remove_own_seed(root: &Path) -> io::Result<()> {
    if !has_own_seed(root) {
        return Ok(());
    }
    let parent = Root::open(root)?.below(Path::new(PARENT))?;
    remove(&parent, OLD)?;
    renameat(&parent, FOLDER, &parent, OLD)?;
    remove(&parent, OLD)
}

/// The meta-data of any seed below `root`, empty without one.
pub(crate) fn seeded_meta_data(root: &Path) -> String {
    let paths = Datasource::NoCloud.paths().iter();
    let mut texts = paths.map(|path| std::fs::read_to_string(root.join(path)));
    texts.find_map(Result::ok).unwrap_or_default()
}

/// Whether the seed on disk has exactly these files.
fn is_written(parent: &Root, seed: &Seed<'_>) -> bool {
    seed.files().iter().all(|(name, text)| {
        let limit = text.map_or(0, str::len) + 1;
        match (parent.read(&Path::new(FOLDER).join(name), limit), text) {
            (Ok(found), Some(text)) => found == text.as_bytes(),
            (Err(error), None) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    })
}

/// Removes a directory or a symlink if it exists. Does not follow symlinks.
fn remove(parent: &Root, name: &str) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}/{name}", parent.as_fd().as_raw_fd());
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    /// An empty root, removed in `Drop`.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let name = format!("agent-seed-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn read(&self, name: &str) -> Option<String> {
            let folder = self.0.join(PARENT).join(FOLDER);
            fs::read_to_string(folder.join(name)).ok()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const SEED: Seed<'_> = Seed {
        meta_data: "instance-id: a\n",
        user_data: "#cloud-config\n{}\n",
        vendor_data: Some("ä"),
        network_config: None,
    };

    #[test]
    fn a_seed_has_only_the_files_with_content() {
        let root = Root::new("all");
        write(&root.0, &SEED).unwrap();
        assert_eq!(root.read("meta-data").unwrap(), SEED.meta_data);
        assert_eq!(root.read("user-data").unwrap(), SEED.user_data);
        assert_eq!(root.read("vendor-data").unwrap(), "ä");
        assert_eq!(root.read("network-config"), None);
        let there: Vec<_> = fs::read_dir(root.0.join(PARENT)).unwrap().collect();
        assert_eq!(there.len(), 1, "{there:?}");
    }

    #[test]
    fn a_new_seed_replaces_all_files_of_the_old_one() {
        let root = Root::new("new");
        let network_config = Some("version: 2\n");
        let old = Seed {
            network_config,
            ..SEED
        };
        write(&root.0, &old).unwrap();
        fs::write(root.0.join(PARENT).join(FOLDER).join("other"), "x").unwrap();
        write(&root.0, &SEED).unwrap();
        assert_eq!(root.read("network-config"), None);
        assert_eq!(root.read("other"), None);
        let longer = Seed {
            vendor_data: Some("äh"),
            ..SEED
        };
        write(&root.0, &longer).unwrap();
        assert_eq!(root.read("vendor-data").unwrap(), "äh");
        let shorter = Seed {
            vendor_data: Some("h"),
            ..SEED
        };
        write(&root.0, &shorter).unwrap();
        assert_eq!(root.read("vendor-data").unwrap(), "h");
    }

    #[test]
    fn only_the_agents_own_seed_is_removed() {
        let root = Root::new("own");
        remove_own_seed(&root.0).unwrap();
        write(&root.0, &SEED).unwrap();
        assert!(has_own_seed(&root.0));
        remove_own_seed(&root.0).unwrap();
        assert_eq!(root.read("meta-data"), None);
        let folder = root.0.join(PARENT).join(FOLDER);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("meta-data"), "instance-id: image\n").unwrap();
        remove_own_seed(&root.0).unwrap();
        assert!(root.read("meta-data").is_some());
    }

    #[test]
    fn temporary_seeds_of_a_crash_are_replaced() {
        let root = Root::new("crash");
        for name in [NEW, OLD] {
            let folder = root.0.join(PARENT).join(name).join("folder");
            fs::create_dir_all(folder).unwrap();
        }
        write(&root.0, &SEED).unwrap();
        assert!(root.read("meta-data").is_some());
    }

    #[test]
    fn a_seed_is_not_written_through_a_symlink_out_of_the_root() {
        let root = Root::new("inside");
        let outside = Root::new("outside");
        fs::create_dir_all(root.0.join("var/lib")).unwrap();
        symlink(&outside.0, root.0.join("var/lib/cloud")).unwrap();
        write(&root.0, &SEED).unwrap_err();
        fs::remove_file(root.0.join("var/lib/cloud")).unwrap();
        fs::create_dir_all(root.0.join(PARENT)).unwrap();
        let folder = root.0.join(PARENT).join(FOLDER);
        symlink(&outside.0, &folder).unwrap();
        write(&root.0, &SEED).unwrap();
        assert!(!folder.is_symlink());
        assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 0);
    }

    #[test]
    fn a_seed_is_written_through_a_symlink_within_the_root() {
        let root = Root::new("within");
        fs::create_dir_all(root.0.join("data/var")).unwrap();
        symlink("/data/var", root.0.join("var")).unwrap();
        write(&root.0, &SEED).unwrap();
        assert!(
            root.0
                .join("data/var/lib/cloud/seed/nocloud/user-data")
                .exists()
        );
    }
}
