//! What must not grow.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use vsock_agent_client::ExecReader;

use crate::{Baseline, PATIENCE, assert_nothing_left, start};

/// Most that the agent may grow by, in bytes, over ten thousand commands.
const MAX_GROWTH: u64 = 2 * 1024 * 1024;

/// Most that the agent may grow by, in bytes, over two gigabytes of output.
const MAX_STREAM_GROWTH: u64 = 4 * 1024 * 1024;

/// Bytes of each stream in the long run.
const STREAM_BYTES: u64 = 1024 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn memory_after_ten_thousand_commands() {
    let (agent, client) = start("sequential").await;
    // As many as the agent remembers the ends of: what it keeps is no growth.
    for _ in 0..2_500 {
        assert!(
            client
                .exec("true", [""; 0])
                .output()
                .await
                .unwrap()
                .status
                .success()
        );
    }
    let before = Baseline::of(&agent, &client).await;
    let memory = agent.memory();
    let begin = Instant::now();
    for run in 0..10_000 {
        let output = tokio::time::timeout(PATIENCE, client.exec("true", [""; 0]).output()).await;
        let output = output
            .unwrap_or_else(|_| panic!("run {run} hangs"))
            .unwrap();
        assert!(output.status.success(), "run {run}");
    }
    let each = begin.elapsed() / 10_000;
    let growth = agent.memory().saturating_sub(memory);
    println!(
        "10,000 commands: {each:?} each, the agent has grown by {} KiB",
        growth / 1024
    );
    assert!(growth <= MAX_GROWTH, "{growth} bytes");
    assert_nothing_left(&agent, &client, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_with_a_gigabyte_on_each_stream() {
    let (agent, client) = start("gigabyte").await;
    // The streams are different, so that bytes of one in the other are seen.
    let script = format!(
        "yes stdout-0123456789 | head -c {STREAM_BYTES} & \
         yes stderr-abcdef | head -c {STREAM_BYTES} >&2; wait"
    );
    let mut session = client.exec("sh", ["-c", &script]).start().await.unwrap();
    let (stdout, stderr) = (
        session.take_stdout().unwrap(),
        session.take_stderr().unwrap(),
    );
    let read = async {
        tokio::join!(
            check(stdout, b"stdout-0123456789\n"),
            check(stderr, b"stderr-abcdef\n")
        )
    };
    let memory = agent.memory();
    let begin = Instant::now();
    let (out, err) = read.await;
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!((out, err), (STREAM_BYTES, STREAM_BYTES));
    assert!(session.wait().await.unwrap().success());
    let growth = agent.peak_memory().saturating_sub(memory);
    #[expect(clippy::cast_precision_loss, reason = "a rate for a person")]
    let rate = (out + err) as f64 / seconds / 1e6;
    println!(
        "2 GiB of output: {rate:.0} MB/s, the agent has grown by {} KiB",
        growth / 1024
    );
    assert!(growth <= MAX_STREAM_GROWTH, "{growth} bytes");
}

/// Reads to the end, and checks that it is `line` over and over.
async fn check(mut reader: ExecReader, line: &[u8]) -> u64 {
    let mut buffer = vec![0; 256 * 1024];
    let repeated = line.repeat(buffer.len() / line.len() + 2);
    let (mut total, mut phase) = (0, 0);
    loop {
        let read = reader.read(&mut buffer).await.unwrap();
        if read == 0 {
            return total;
        }
        assert!(
            buffer[..read] == repeated[phase..phase + read],
            "at byte {total}"
        );
        total += read as u64;
        phase = (phase + read) % line.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_with_a_slow_reader_of_endless_output() {
    let (agent, client) = start("slow").await;
    client.exec("true", [""; 0]).output().await.unwrap();
    let memory = agent.memory();
    let mut session = client.exec("yes", [""; 0]).start().await.unwrap();
    let mut stdout = session.take_stdout().unwrap();
    let mut stdin = session.take_stdin().unwrap();
    // Nobody reads; what fits between the two fills up.
    let mut buffer = [0; 1024];
    stdout.read_exact(&mut buffer).await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    for _ in 0..8 {
        ticks.tick().await;
        stdout.read_exact(&mut buffer).await.unwrap();
    }
    let growth = agent.memory().saturating_sub(memory);
    assert!(growth <= 1024 * 1024, "{growth} bytes");
    // Input and control are not behind the output.
    stdin.write_all(b"x").await.unwrap();
    let begin = Instant::now();
    session.control().signal(2).await.unwrap();
    drop(stdout);
    assert_eq!(session.wait().await.unwrap().code, 130);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}
