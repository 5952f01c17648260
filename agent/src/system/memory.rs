//! Returns freed memory to the kernel after a peak (`malloc_trim(3)`).

#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

use std::{fs, time::Duration};

use tokio::{sync::Notify, time::sleep};

use crate::system::blocking::run_blocking;

/// Minimum time between two checks, and the time from a use of memory to the next.
const INTERVAL: Duration = Duration::from_secs(10);

/// Growth of the resident memory that triggers a trim, in pages of 4 KiB: 8 MiB.
const GROWTH: u64 = 2048;

/// Notified when memory was used and freed.
static USED: Notify = Notify::const_new();

/// Leads to a check: a task or a blocking work, which may have used much memory, has ended.
pub(crate) fn used() {
    USED.notify_one();
}

/// Checks the resident memory after it was [`used`], and trims the heap if it is [`GROWTH`] above its minimum.
/// Never returns.
///
/// Freed memory is resident until it is trimmed, so the amount of it is unknown before.
pub(crate) async fn trim() {
    let mut minimum = resident().unwrap_or(u64::MAX);
    loop {
        USED.notified().await;
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
