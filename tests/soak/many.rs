//! A thousand of each kind of command, and a thousand at once.

use harness::kinds::{self, repeat};

use crate::{Baseline, assert_nothing_left, start};

/// Runs of each kind.
const RUNS: usize = 1000;

/// Commands at once.
const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn thousand_commands_of_each_kind() {
    let (agent, client) = start("kinds").await;
    client.server_info().await.unwrap();
    let before = Baseline::of(&agent, &client).await;
    for (name, kind) in kinds::ALL {
        let begin = tokio::time::Instant::now();
        repeat(RUNS, AT_ONCE, |run| kind(client.clone(), run)).await;
        println!("{RUNS} × {name}: {:.1?}", begin.elapsed());
        assert_nothing_left(&agent, &client, &before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_commands_at_once() {
    let (agent, client) = start("thousand").await;
    client.server_info().await.unwrap();
    let before = Baseline::of(&agent, &client).await;
    repeat(1000, 1000, |run| kinds::echo(client.clone(), run)).await;
    let peak = agent.peak_memory();
    println!(
        "1,000 commands at once: the agent's peak is {} KiB",
        peak / 1024
    );
    assert!(peak < 150 * 1024 * 1024, "{peak} bytes");
    assert_nothing_left(&agent, &client, &before).await;
}
