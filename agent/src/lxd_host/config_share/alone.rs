//! Mount namespaces for tests.

use std::{fs, path::Path, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs a test as root with a new directory, in a thread with its own mount namespace.
pub(super) fn with_own_mounts(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    let folder = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let folder = folder.canonicalize().unwrap();
    let root = folder.clone();
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
            .expect("the tests of mounts need root");
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        test(&root);
    });
    thread.join().unwrap();
    fs::remove_dir_all(&folder).unwrap();
}
