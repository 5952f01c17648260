//! Returns freed memory to the system after a peak; the C library keeps it otherwise.

#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

use std::{fs, time::Duration};

use tokio::time::sleep;

use crate::system::blocking::run_blocking;

/// How often the size is checked.
const INTERVAL: Duration = Duration::from_secs(10);

/// Growth that is worth the time, in pages of 4 KiB: 8 MiB.
const GROWTH: u64 = 2048;

/// Gives freed memory back while the process is larger than it was. Never returns.
///
/// It is tried at every look, since what was in use at the last one may be free by now, and nothing
/// tells that from outside: freed memory is resident too.
pub(crate) async fn trim() {
    let mut least = resident().unwrap_or(u64::MAX);
    loop {
        sleep(INTERVAL).await;
        let Some(before) = resident() else { continue };
        least = least.min(before);
        if before > least + GROWTH {
            // If no thread can be created, the next check tries again.
            let _ = run_blocking(release).await;
            let after = resident();
            tracing::debug!(before, ?after, "freed memory is given back");
        }
    }
}

/// Pages of this process in memory (`proc_pid_statm(5)`).
fn resident() -> Option<u64> {
    let numbers = fs::read_to_string("/proc/self/statm").ok()?;
    numbers.split(' ').nth(1)?.parse().ok()
}

#[cfg(target_env = "gnu")]
fn release() {
    // SAFETY: it locks the heap as `free` does, and touches no memory in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no `malloc_trim`.
#[cfg(not(target_env = "gnu"))]
fn release() {}
