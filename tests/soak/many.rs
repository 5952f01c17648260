//! A thousand of each kind of command that ever made an agent hang, lose bytes, or lie.

use tokio::io::AsyncReadExt;
use vsock_agent_client::{Client, Exec, ExitStatus, Output, TerminalSize};

use crate::{Baseline, assert_nothing_left, repeat, start};

/// Runs of each kind.
const RUNS: usize = 1000;

/// Commands at once.
const AT_ONCE: usize = 50;

fn sh(client: &Client, script: &str) -> Exec {
    client.exec("sh", ["-c", script])
}

/// A thousand runs of one kind, each checked.
async fn thousand(
    name: &str,
    exec: impl Fn(&Client, usize) -> Exec,
    check: impl Fn(usize, Output),
) {
    let (agent, client) = start(name).await;
    client.server_info().await.unwrap();
    let before = Baseline::of(&agent, &client).await;
    repeat(RUNS, AT_ONCE, |run| {
        let output = exec(&client, run).output();
        let check = &check;
        async move { check(run, output.await.unwrap()) }
    })
    .await;
    assert_nothing_left(&agent, &client, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_child_that_holds_stdout() {
    // The child ends by itself, so that none is left to count as a leak.
    thousand(
        "background",
        |client, _| sh(client, "sleep 4 & echo hi"),
        |run, output| {
            assert_eq!(output.stdout, b"hi\n", "run {run}");
            assert_eq!(output.status.code, 0, "run {run}");
            assert!(!output.status.output_complete, "run {run}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_closed_early() {
    thousand(
        "closed",
        |client, _| sh(client, "exec >&-; echo err >&2; exit 3"),
        |run, output| {
            assert_eq!(
                (output.stdout.len(), output.stderr.as_slice()),
                (0, &b"err\n"[..]),
                "run {run}"
            );
            assert_eq!(output.status.code, 3, "run {run}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_killed_by_a_signal() {
    thousand(
        "killed",
        |client, _| sh(client, "echo out; kill -9 $$"),
        |run, output| {
            assert_eq!(output.stdout, b"out\n", "run {run}");
            assert_eq!(
                (output.status.code, output.status.signal),
                (137, Some(9)),
                "run {run}"
            );
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_exactly_a_pipe_and_one_more_and_one_less() {
    let size = |run| 65_535 + run % 3;
    thousand(
        "exact",
        |client, run| {
            sh(
                client,
                &format!("head -c {} /dev/zero | tr '\\0' x", size(run)),
            )
        },
        |run, output| {
            assert_eq!(output.stdout.len(), size(run), "run {run}");
            assert!(output.stdout.iter().all(|byte| *byte == b'x'), "run {run}");
            assert_eq!(output.status.code, 0, "run {run}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_with_3_kb_and_then_the_end() {
    let size = TerminalSize {
        columns: 80,
        lines: 25,
    };
    thousand(
        "terminal",
        |client, _| sh(client, "head -c 3000 /dev/zero | tr '\\0' x; exit 9").tty(size),
        |run, output| {
            assert_eq!(output.stdout, vec![b'x'; 3000], "run {run}");
            assert_eq!(output.status.code, 9, "run {run}");
        },
    )
    .await;
}

/// A thousand runs of one kind, streamed by hand.
async fn thousand_sessions<F>(name: &str, one: impl Fn(Client) -> F)
where
    F: Future<Output = ExitStatus>,
{
    let (agent, client) = start(name).await;
    client.server_info().await.unwrap();
    let before = Baseline::of(&agent, &client).await;
    repeat(RUNS, AT_ONCE, |run| {
        let status = one(client.clone());
        async move { assert_eq!(status.await.code, 5, "run {run}") }
    })
    .await;
    assert_nothing_left(&agent, &client, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_stderr_with_nobody_reading_stdout_first() {
    thousand_sessions("stderr", |client| async move {
        let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; exit 5";
        let mut session = sh(&client, script).start().await.unwrap();
        let (mut stdout, mut stderr) = (
            session.take_stdout().unwrap(),
            session.take_stderr().unwrap(),
        );
        let (mut out, mut err) = (Vec::new(), Vec::new());
        stderr.read_to_end(&mut err).await.unwrap();
        stdout.read_to_end(&mut out).await.unwrap();
        assert_eq!((out.len(), err.len()), (300_000, 300_000));
        session.wait().await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_that_never_closes() {
    thousand_sessions("stdin", |client| async move {
        let mut session = sh(&client, "exit 5").start().await.unwrap();
        let stdin = session.take_stdin();
        let status = session.wait().await.unwrap();
        drop(stdin);
        status
    })
    .await;
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
            use tokio::io::AsyncWriteExt;
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
