//! Directories that only root and this process's user can write to.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use nix::unistd::geteuid;

/// Whether only root and this process's effective user can create entries in the directory, or
/// replace it by another one.
#[must_use]
pub fn is_our_own(directory: &Path) -> bool {
    let Ok(directory) = directory.canonicalize() else {
        return false;
    };
    let own = geteuid().as_raw();
    let is_safe = |(index, part): (usize, &Path)| {
        fs::symlink_metadata(part).is_ok_and(|metadata| {
            let is_closed = metadata.mode() & 0o022 == 0;
            // In a sticky parent directory other users cannot rename this entry.
            let is_sticky = index > 0 && metadata.mode() & 0o1000 != 0;
            [0, own].contains(&metadata.uid()) && (is_closed || is_sticky)
        })
    };
    directory.ancestors().enumerate().all(is_safe)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt, chown},
        path::PathBuf,
    };

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("secret-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        set_mode(&folder, 0o755);
        folder
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_is_our_own_if_all_its_parents_are() {
        let folder = folder("own");
        let below = folder.join("below");
        fs::create_dir_all(&below).unwrap();
        assert!(is_our_own(&below));
        for mode in [0o775, 0o757, 0o1777] {
            set_mode(&below, mode);
            assert!(!is_our_own(&below), "{mode:o}");
        }
        set_mode(&below, 0o755);
        set_mode(&folder, 0o777);
        assert!(!is_our_own(&below));
        set_mode(&folder, 0o755);
        chown(&folder, Some(61234), None).expect("the tests of owners need root");
        assert!(!is_our_own(&below));
        assert!(!is_our_own(&folder.join("missing")));
        fs::remove_dir_all(&folder).unwrap();
    }
}
