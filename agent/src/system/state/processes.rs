//! Processes: `/proc/PID/stat`.

use super::{cpu::TICKS_PER_SECOND, memory::Fields};
use crate::system::proc_stat::ProcStat;

/// The flag of a kernel thread: `PF_KTHREAD` (`include/linux/sched.h`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Numbers of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Processes {
    pub(super) all: u64,
    /// Without kernel threads and zombies.
    pub(super) programs: u64,
}

/// The agent's process.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct OwnProcess {
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_files: u64,
    /// Processor time used, in seconds.
    pub(super) cpu_seconds: f64,
    /// Seconds since 1970.
    pub(super) start_time: f64,
}

/// The used fields of `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    has_ended: bool,
    flags: u64,
    /// Processor time used, in ticks.
    cpu: u64,
    /// Start, in ticks since the boot.
    start: u64,
}

/// Counts processes by their `/proc/PID/stat`. An empty text, of a process that has ended since it was
/// listed, counts in `all`.
pub(super) fn count(stats: impl Iterator<Item = String>) -> Processes {
    let mut processes = Processes::default();
    for text in stats {
        processes.all += 1;
        let stat = parse(&text);
        let is_program = |stat: Stat| !stat.has_ended && stat.flags & KERNEL_THREAD == 0;
        processes.programs += u64::from(stat.is_some_and(is_program));
    }
    processes
}

/// The agent's process, by its `stat` and `status`.
pub(super) fn own(stat: &str, status: &Fields, open_files: usize, boot_time: u64) -> OwnProcess {
    let stat = parse(stat);
    let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
    OwnProcess {
        resident_bytes: status.get("VmRSS"),
        virtual_bytes: status.get("VmSize"),
        threads: status.get("Threads"),
        open_files: open_files as u64,
        cpu_seconds: stat.as_ref().map_or(0.0, |stat| seconds(stat.cpu)),
        start_time: stat.map_or(0.0, |stat| boot_time as f64 + seconds(stat.start)),
    }
}

fn parse(text: &str) -> Option<Stat> {
    let stat = ProcStat::parse(text)?;
    let (user, system): (u64, u64) = (stat.number(14)?, stat.number(15)?);
    Some(Stat {
        has_ended: stat.has_ended()?,
        flags: stat.number(9)?,
        cpu: user.saturating_add(system),
        start: stat.number(22)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::memory, *};

    const AGENT: &str = "77 (vsock (agent)) S 1 77 77 0 -1 4194560 500 0 0 0 12 34 0 0 20 0 3 0 \
                         250 9000000 800 18446744073709551615 1 1 0";
    const KTHREAD: &str = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 0 0 0 1";
    const ZOMBIE: &str = "9 (sh) Z 1 9 9 0 -1 4227084 0 0 0 0 0 0 0 0 20 0 1 0 300 0 0 1";

    #[test]
    fn kernel_threads_and_zombies_are_no_programs() {
        let stats = [AGENT, KTHREAD, ZOMBIE, "", "garbage"].map(str::to_owned);
        let expected = Processes {
            all: 5,
            programs: 1,
        };
        assert_eq!(count(stats.into_iter()), expected);
    }

    #[test]
    fn the_agents_process_has_size_and_times() {
        let status = memory::parse("VmSize:\t  8000 kB\nVmRSS:\t    4000 kB\nThreads:\t3\n");
        let own = own(AGENT, &status, 12, 1_700_000_000);
        assert_eq!((own.resident_bytes, own.threads), (4_096_000, 3));
        assert_eq!((own.cpu_seconds, own.open_files), (0.46, 12));
        assert_eq!(own.start_time, 1_700_000_002.5);
    }

    #[test]
    fn a_truncated_stat_of_a_process_is_refused() {
        for end in 0..AGENT.len() - 60 {
            assert_eq!(parse(&AGENT[..end]), None, "{end}");
        }
    }
}
