//! How many files may be open (`RLIMIT_NOFILE`): more for us, as many as before for what we start.

use std::{
    io,
    process::{Command, ExitStatus},
    sync::OnceLock,
};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The soft and the hard limit that this process was started with.
static FIRST: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// Copies and a service for many guests need more descriptors than a login's soft limit. Where it
/// cannot be raised, fewer files are open at once.
pub(crate) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = FIRST.set((soft, hard));
        set(hard, hard);
    }
}

/// Runs a command to its end under the limit that this process was started with: there are programs
/// that cannot do with a high one (`select(2)`).
pub(crate) fn status(command: &mut Command) -> io::Result<ExitStatus> {
    let first = FIRST.get();
    if let Some((soft, hard)) = first {
        set(*soft, *hard);
    }
    let child = command.spawn();
    if let Some((_, hard)) = first {
        set(*hard, *hard);
    }
    child?.wait()
}

fn set(soft: rlim_t, hard: rlim_t) {
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
}
