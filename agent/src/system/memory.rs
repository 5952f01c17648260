//! Returns freed memory to the kernel after a peak (`malloc_trim(3)`).

#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

use std::{fs, time::Duration};

use tokio::time::sleep;

use crate::system::blocking::run_blocking;

/// Interval of the checks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Growth of the resident memory that triggers a trim, in pages of 4 KiB: 8 MiB.
const GROWTH: u64 = 2048;

/// Trims the heap at each check while the resident memory is [`GROWTH`] above its minimum. Never returns.
///
/// Freed memory is resident until it is trimmed, so the amount of it is unknown before.
pub(crate) async fn trim() {
    let mut minimum = resident().unwrap_or(u64::MAX);
    loop {
        sleep(INTERVAL).await;
        let Some(before) = resident() else { continue };
        minimum = minimum.min(before);
        if before > minimum + GROWTH {
            // If no thread can be created, the next check tries again.
            let _ = run_blocking(release).await;
            let after = resident();
            tracing::debug!(before, ?after, "freed memory is given back");
        }
    }
}

/// Resident pages of this process (`proc_pid_statm(5)`).
fn resident() -> Option<u64> {
    let numbers = fs::read_to_string("/proc/self/statm").ok()?;
    numbers.split(' ').nth(1)?.parse().ok()
}

#[cfg(target_env = "gnu")]
fn release() {
    // SAFETY: `malloc_trim` is thread-safe, and releases free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries have no `malloc_trim`.
#[cfg(not(target_env = "gnu"))]
fn release() {}
