//! The limit of open files (`RLIMIT_NOFILE`): raised for this process, restored for child processes.

use std::{
    io,
    process::{Command, ExitStatus},
    sync::OnceLock,
};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The soft and the hard limit at the start of this process.
static ORIGINAL: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Raises the soft limit to the hard limit: copies and `serve` need more descriptors than a login's
/// soft limit. If that fails, fewer files are open at once.
pub(crate) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = ORIGINAL.set((soft, hard));
        set(hard, hard);
    }
}

/// Runs a command with the original limit, because programs that use `select(2)` fail with a high
/// one. Waits for it to end.
pub(crate) fn status(command: &mut Command) -> io::Result<ExitStatus> {
    let original = ORIGINAL.get();
    if let Some((soft, hard)) = original {
        set(*soft, *hard);
    }
    let child = command.spawn();
    if let Some((_, hard)) = original {
        set(*hard, *hard);
    }
    child?.wait()
}

fn set(soft: rlim_t, hard: rlim_t) {
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
}
