//! A thousand of each kind of command, and a thousand at once.

use harness::kinds::{self, repeat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Baseline, assert_nothing_left, start};

/// Runs of each kind.
const RUNS: usize = 1000;

/// Commands at once.
const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_of_each_kind() {
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
    let data = vec![b'z'; 64 * 1024];
    repeat(1000, 1000, |run| {
        let (client, data) = (client.clone(), &data);
        async move {
            let mut session = client.exec("cat", [""; 0]).start().await.unwrap();
            let (mut stdin, mut stdout) = (
                session.take_stdin().unwrap(),
                session.take_stdout().unwrap(),
            );
            let mut echo = Vec::new();
            let send = async {
                stdin.write_all(data).await.unwrap();
                stdin.shutdown().await.unwrap();
            };
            let ((), read) = tokio::join!(send, stdout.read_to_end(&mut echo));
            read.unwrap();
            assert!(echo == *data, "run {run}: {} bytes came back", echo.len());
            assert_eq!(session.wait().await.unwrap().code, 0, "run {run}");
        }
    })
    .await;
    let peak = agent.peak_memory();
    println!(
        "1,000 commands at once: the agent's peak is {} KiB",
        peak / 1024
    );
    assert!(peak < 150 * 1024 * 1024, "{peak} bytes");
    assert_nothing_left(&agent, &client, &before).await;
}
