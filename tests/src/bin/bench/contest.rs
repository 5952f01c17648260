//! Several ways to do the same, in turns, so that what else the machine does hits all alike.

use std::{process::Command, time::Duration};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio::time::Instant;

/// One way.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// What is timed, from start to end.
    pub(crate) command: Command,
}

impl Way {
    pub(crate) fn new(name: &'static str, command: Command) -> Self {
        Self { name, command }
    }
}

/// How long one way took, in seconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) name: &'static str,
    pub(crate) median: f64,
    /// 99 of 100 took no longer.
    pub(crate) p99: f64,
    pub(crate) min: f64,
    pub(crate) runs: Vec<f64>,
}

/// Runs all ways `runs` times in turns. `before` makes room and `check` looks at what was done, both
/// untimed.
pub(crate) fn run(
    mut ways: Vec<Way>,
    runs: usize,
    before: impl Fn() -> anyhow::Result<()>,
    check: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Times>> {
    let mut times = vec![Vec::new(); ways.len()];
    for round in 0..runs {
        // Another one is the first each time.
        for turn in 0..ways.len() {
            let number = (round + turn) % ways.len();
            before()?;
            times[number].push(time(&mut ways[number].command)?.as_secs_f64());
            check().context(ways[number].name)?;
        }
    }
    let times = ways.iter().zip(times);
    Ok(times.map(|(way, runs)| Times::of(way.name, runs)).collect())
}

fn time(command: &mut Command) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let output = command.output();
    let took = begin.elapsed();
    let output = output.with_context(|| format!("starting {command:?}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {words}",
        output.status
    );
    Ok(took)
}

impl Times {
    /// Sums up the runs.
    pub(crate) fn of(name: &'static str, runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            name,
            median: median(&sorted),
            p99: sorted
                .get(sorted.len() * 99 / 100)
                .copied()
                .unwrap_or(f64::NAN),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            runs,
        }
    }
}

/// The one in the middle, or half way between the two there.
fn median(sorted: &[f64]) -> f64 {
    let at = |number: usize| sorted.get(number).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
}
