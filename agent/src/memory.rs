//! Memory goes back to the system after a peak: the C library keeps what was freed.

#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

use std::{fs, time::Duration};

use tokio::time::sleep;

use crate::blocking::run_blocking;

/// How often the size is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Growth in pages of 4 KiB for which it is worth the time: 8 MiB.
const GROWTH: u64 = 2048;

/// Gives freed memory back whenever the process has grown. Never returns.
pub(crate) async fn trim() {
    let mut last = resident().unwrap_or_default();
    loop {
        sleep(INTERVAL).await;
        match resident() {
            Some(now) if now > last + GROWTH => {
                // Without a thread it is tried again later.
                let _ = run_blocking(release).await;
                last = resident().unwrap_or(now);
            }
            Some(now) => last = last.min(now),
            None => {}
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
