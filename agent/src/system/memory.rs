//! Memory goes back to the system after a peak: the C library keeps what was freed.

#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

use std::{fs, time::Duration};

use tokio::time::sleep;

use crate::system::blocking::run_blocking;

/// How often the size is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Growth in pages of 4 KiB for which it is worth the time: 8 MiB.
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
            // Without a thread it is tried again later.
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
    // SAFETY: it locks the heap as `free` does, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no such call.
#[cfg(not(target_env = "gnu"))]
fn release() {}
