//! Processors: `/proc/stat`, `/proc/loadavg`, `cpu.stat`.

/// Ticks a second in `/proc`: `USER_HZ`, 100 on every machine this runs on
/// (`include/asm-generic/param.h`).
pub(super) const TICKS_PER_SECOND: f64 = 100.0;

/// `/proc/stat` (`proc_stat(5)`). Missing values are 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Stat {
    pub(super) cpus: Vec<Cpu>,
    /// Seconds since 1970.
    pub(super) boot_time: u64,
    pub(super) context_switches: u64,
    pub(super) forks: u64,
    pub(super) interrupts: u64,
    pub(super) running: u64,
    pub(super) blocked: u64,
}

/// The modes of a processor, in the order of `/proc/stat`.
pub(super) const MODES: [&str; 8] = [
    "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal",
];

/// One processor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cpu {
    /// The number in its name, as in `cpu0`.
    pub(super) number: String,
    /// Time in each of [`MODES`], in seconds.
    pub(super) seconds: [f64; MODES.len()],
}

/// Load averages over 1, 5 and 15 minutes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load(pub(super) [f64; 3]);

/// Parses `/proc/stat`. Invalid lines are skipped.
pub(super) fn parse_stat(text: &str) -> Stat {
    let mut stat = Stat::default();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(key) = fields.next() else { continue };
        let field = match key {
            "btime" => &mut stat.boot_time,
            "ctxt" => &mut stat.context_switches,
            "processes" => &mut stat.forks,
            "intr" => &mut stat.interrupts,
            "procs_running" => &mut stat.running,
            "procs_blocked" => &mut stat.blocked,
            _ => {
                stat.cpus.extend(parse_cpu(key, fields));
                continue;
            }
        };
        *field = fields.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    }
    stat
}

/// Parses a line `cpuN`. `None` for the line `cpu`, the sum of the others.
fn parse_cpu<'a>(key: &str, fields: impl Iterator<Item = &'a str>) -> Option<Cpu> {
    let number = key.strip_prefix("cpu")?;
    number.parse::<u32>().ok()?;
    let mut seconds = [0.0; MODES.len()];
    for (seconds, ticks) in seconds.iter_mut().zip(fields) {
        *seconds = ticks.parse::<u64>().ok()? as f64 / TICKS_PER_SECOND;
    }
    Some(Cpu {
        number: number.to_owned(),
        seconds,
    })
}

/// Parses `/proc/loadavg`.
pub(super) fn parse_load(text: &str) -> Option<Load> {
    let mut fields = text.split_ascii_whitespace();
    let mut next = || {
        let load: f64 = fields.next()?.parse().ok()?;
        (load.is_finite() && load >= 0.0).then_some(load)
    };
    Some(Load([next()?, next()?, next()?]))
}

/// The processor time in `cpu.stat` of a control group, in nanoseconds.
pub(super) fn parse_usage(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let microseconds = lines.find_map(|line| line.strip_prefix("usage_usec "))?;
    microseconds.trim().parse::<u64>().ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_converted_to_seconds_and_the_sum_of_cpus_is_skipped() {
        let text = "cpu  30 0 0 0 0 0 0 0 0 0\n\
                    cpu0 10 1 2 300 4 5 6 7 0 0\n\
                    cpu1 20 0 0 0\n\
                    intr 99 1 2\nctxt 12\nbtime 1700000000\nprocesses 5\n\
                    procs_running 2\nprocs_blocked 1\nsoftirq 1 2\n";
        let stat = parse_stat(text);
        let numbers: Vec<_> = stat.cpus.iter().map(|cpu| cpu.number.as_str()).collect();
        assert_eq!(numbers, ["0", "1"]);
        assert_eq!(
            (stat.cpus[0].seconds[3], stat.cpus[0].seconds[7]),
            (3.0, 0.07)
        );
        assert_eq!(
            (stat.cpus[1].seconds[0], stat.cpus[1].seconds[7]),
            (0.2, 0.0)
        );
        assert_eq!((stat.boot_time, stat.interrupts), (1_700_000_000, 99));
        assert_eq!((stat.running, stat.blocked), (2, 1));
    }

    #[test]
    fn invalid_lines_of_proc_stat_are_skipped() {
        let stat = parse_stat("cpux 1 2\ncpu0 1 -2 3\ncpufreq\n\nbtime\nctxt nan\n");
        assert_eq!(stat, Stat::default());
    }

    #[test]
    fn a_load_average_has_three_numbers() {
        let load = parse_load("0.10 0.20 1.30 1/87 14478\n");
        assert_eq!(load, Some(Load([0.1, 0.2, 1.3])));
        for text in ["", "1 2", "nan nan nan", "-1 0 0"] {
            assert_eq!(parse_load(text), None, "{text:?}");
        }
    }

    #[test]
    fn cpu_usage_of_a_cgroup_is_converted_to_nanoseconds() {
        assert_eq!(parse_usage("usage_usec 12\nuser_usec 5\n"), Some(12_000));
        assert_eq!(parse_usage("user_usec 5\nusage_usec x\n"), None);
        assert_eq!(parse_usage(&format!("usage_usec {}", u64::MAX)), None);
    }
}
