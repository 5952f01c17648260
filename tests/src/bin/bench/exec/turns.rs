//! As in [`contest`](crate::contest), ways in turns; here each is a piece of this program.

use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::contest::Times;

/// Longest that one run may take: a hundred commands at once of another agent need half a minute in an
/// emulated machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One way.
pub(super) struct Way {
    name: &'static str,
    /// Runs in one turn.
    batch: usize,
    /// Runs once, and says how many seconds that took.
    once: Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<f64>>>,
}

impl Way {
    pub(super) fn new<F>(name: &'static str, batch: usize, once: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = anyhow::Result<f64>> + Send + 'static,
    {
        let once = Box::new(move || Box::pin(once()) as BoxFuture<'static, _>);
        Self { name, batch, once }
    }
}

/// Runs all ways in turns, so many rounds. What runs often in a turn runs once before, uncounted: some
/// keep a connection from then on.
pub(super) async fn take(ways: &[Way], rounds: usize) -> anyhow::Result<Vec<Times>> {
    for way in ways.iter().filter(|way| way.batch > 1) {
        one(way).await.context(way.name)?;
    }
    let mut runs = vec![Vec::new(); ways.len()];
    for round in 0..rounds {
        // Another one is the first each time.
        for turn in 0..ways.len() {
            let number = (round + turn) % ways.len();
            let way = &ways[number];
            for _ in 0..way.batch {
                runs[number].push(one(way).await.context(way.name)?);
            }
        }
    }
    let times = ways.iter().zip(runs);
    Ok(times.map(|(way, runs)| Times::of(way.name, runs)).collect())
}

/// One run, on a worker of the runtime as any program's: what `main` waits for is on none.
async fn one(way: &Way) -> anyhow::Result<f64> {
    let mut task = JoinSet::new();
    task.spawn((way.once)());
    let ended = timeout(PATIENCE, task.join_next());
    ended.await.context("it hangs")?.context("a task")??
}

/// How many seconds this takes.
pub(super) async fn timed(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let begin = Instant::now();
    work.await?;
    Ok(begin.elapsed().as_secs_f64())
}
