//! A short-lived folder per VM for its sockets, in the system's temporary folder.
//!
//! Not below `target/`: the path of a Unix socket has 107 bytes at most, and a repository may be
//! anywhere.

use std::{env, fs, path::Path, path::PathBuf, process};

use nix::unistd::mkdtemp;

use super::{Lifetime, VmError};

/// The first part of the name of a folder that ends with its process, whose id follows.
const OWNED: &str = "vsock-lab.";

/// Creates a folder that only this user can enter. One that a killed process left behind is removed
/// first.
pub(super) fn create(lifetime: Lifetime) -> Result<PathBuf, VmError> {
    let parent = env::temp_dir();
    sweep(&parent);
    let name = match lifetime {
        Lifetime::Owned => format!("{OWNED}{}.XXXXXX", process::id()),
        Lifetime::Detached => "vsock-demo.XXXXXX".to_owned(),
    };
    let template = parent.join(name);
    mkdtemp(&template)
        .map_err(|errno| VmError::io(format!("creating {}", template.display()))(errno.into()))
}

/// Removes the folders of processes that are gone. Nothing depends on it, so it fails in silence.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(OWNED)?.split('.').next());
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
