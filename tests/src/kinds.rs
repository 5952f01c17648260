//! The kinds of command that ever made an agent hang, lose bytes, or lie about the exit status.

use std::{future::Future, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use vsock_agent_client::{Client, Exec, Output, TerminalSize};

/// Longest that one command may take on a machine that runs many at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// One kind: how it is run once, with the number of the run, and checked.
pub type Kind = fn(Client, usize) -> BoxFuture<'static, ()>;

/// All kinds, by name.
pub const ALL: &[(&str, Kind)] = &[
    ("background", background),
    ("closed", closed),
    ("killed", killed),
    ("exact", exact),
    ("terminal", terminal),
    ("stderr", stderr_first),
    ("stdin", stdin_open),
];

/// Runs `one` so many times, `at_once` at a time. None may hang.
///
/// # Panics
///
/// When a run does, or takes longer than a minute.
pub async fn repeat<F>(runs: usize, at_once: usize, one: impl Fn(usize) -> F)
where
    F: Future<Output = ()>,
{
    let runs = stream::iter(0..runs).map(|run| {
        let one = one(run);
        async move {
            timeout(PATIENCE, one)
                .await
                .unwrap_or_else(|_| panic!("run {run} hangs"))
        }
    });
    runs.buffer_unordered(at_once).collect::<Vec<()>>().await;
}

/// 64 KiB through `cat` and back, the same.
pub fn echo(client: Client, run: usize) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let data = vec![b'z'; 64 * 1024];
        let mut session = client.exec("cat", [""; 0]).start().await.unwrap();
        let (mut stdin, mut stdout) = (
            session.take_stdin().unwrap(),
            session.take_stdout().unwrap(),
        );
        let mut echo = Vec::new();
        let send = async {
            stdin.write_all(&data).await.unwrap();
            stdin.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(send, stdout.read_to_end(&mut echo));
        read.unwrap();
        assert!(echo == data, "run {run}: {} bytes came back", echo.len());
        assert_eq!(session.wait().await.unwrap().code, 0, "run {run}");
    })
}

/// A command that does nothing, and well.
pub fn nothing(client: Client, run: usize) -> BoxFuture<'static, ()> {
    check(client.exec("true", [""; 0]), run, move |output| {
        assert!(output.status.success(), "run {run}");
    })
}

fn sh(client: &Client, script: &str) -> Exec {
    client.exec("sh", ["-c", script])
}

/// Runs to the end and checks what is left.
fn check(
    exec: Exec,
    run: usize,
    check: impl Fn(Output) + Send + 'static,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let output = exec
            .output()
            .await
            .unwrap_or_else(|error| panic!("run {run}: {error:?}"));
        check(output);
    })
}

/// A background child holds stdout. It ends by itself, so that none counts as a leak.
fn background(client: Client, run: usize) -> BoxFuture<'static, ()> {
    check(sh(&client, "sleep 4 & echo hi"), run, move |output| {
        assert_eq!(output.stdout, b"hi\n", "run {run}");
        assert_eq!(output.status.code, 0, "run {run}");
        assert!(!output.status.output_complete, "run {run}");
    })
}

/// The command closes stdout early.
fn closed(client: Client, run: usize) -> BoxFuture<'static, ()> {
    check(
        sh(&client, "exec >&-; echo err >&2; exit 3"),
        run,
        move |output| {
            assert_eq!(output.stdout, b"", "run {run}");
            assert_eq!(output.stderr, b"err\n", "run {run}");
            assert_eq!(output.status.code, 3, "run {run}");
        },
    )
}

/// A signal ends the command.
fn killed(client: Client, run: usize) -> BoxFuture<'static, ()> {
    check(sh(&client, "echo out; kill -9 $$"), run, move |output| {
        assert_eq!(output.stdout, b"out\n", "run {run}");
        let status = (output.status.code, output.status.signal);
        assert_eq!(status, (137, Some(9)), "run {run}");
    })
}

/// The output is exactly what a pipe holds, one byte less, or one more.
fn exact(client: Client, run: usize) -> BoxFuture<'static, ()> {
    let size = 65_535 + run % 3;
    let script = format!("head -c {size} /dev/zero | tr '\\0' x");
    check(sh(&client, &script), run, move |output| {
        assert_eq!(output.stdout.len(), size, "run {run}");
        assert!(output.stdout.iter().all(|byte| *byte == b'x'), "run {run}");
        assert_eq!(output.status.code, 0, "run {run}");
    })
}

/// 3 KB to a terminal, and the end.
fn terminal(client: Client, run: usize) -> BoxFuture<'static, ()> {
    let size = TerminalSize {
        columns: 80,
        lines: 25,
    };
    let exec = sh(&client, "head -c 3000 /dev/zero | tr '\\0' x; exit 9").tty(size);
    check(exec, run, move |output| {
        assert_eq!(output.stdout, vec![b'x'; 3000], "run {run}");
        assert_eq!(output.status.code, 9, "run {run}");
    })
}

/// Stderr is full before anybody reads stdout.
fn stderr_first(client: Client, run: usize) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; exit 5";
        let mut session = sh(&client, script).start().await.unwrap();
        let (mut stdout, mut stderr) = (
            session.take_stdout().unwrap(),
            session.take_stderr().unwrap(),
        );
        let (mut out, mut err) = (Vec::new(), Vec::new());
        stderr.read_to_end(&mut err).await.unwrap();
        stdout.read_to_end(&mut out).await.unwrap();
        assert_eq!((out.len(), err.len()), (300_000, 300_000), "run {run}");
        assert_eq!(session.wait().await.unwrap().code, 5, "run {run}");
    })
}

/// Stdin never closes.
fn stdin_open(client: Client, run: usize) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut session = sh(&client, "exit 5").start().await.unwrap();
        let stdin = session.take_stdin();
        assert_eq!(session.wait().await.unwrap().code, 5, "run {run}");
        drop(stdin);
    })
}
