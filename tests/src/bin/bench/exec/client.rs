//! What is measured with the library: one [`Client`], as a program has it that lives long.

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinSet,
    time::Instant,
};
use vsock_agent_client::{Client, ExitStatus};

use super::turns::timed;

/// Bytes of one read or write of a stream, here and in the commands.
pub(super) const PIECE_BYTES: u64 = 64 * 1024;

/// `true`, from nothing to its exit status.
pub(super) async fn nothing(client: Client) -> anyhow::Result<f64> {
    timed(async {
        let output = client.exec("true", [""; 0]).output().await?;
        check(&output.status)
    })
    .await
}

/// So many bytes of a command's output, its start and end included.
pub(super) async fn output(client: Client, bytes: u64) -> anyhow::Result<f64> {
    timed(async {
        let [program, arguments @ ..] = source(bytes);
        let mut session = client.exec(program, arguments).start().await?;
        let stdout = session.take_stdout().context("the output")?;
        drain(stdout, bytes).await?;
        check(&session.wait().await?)
    })
    .await
}

/// So many bytes of a command's input, its start and end included.
pub(super) async fn input(client: Client, bytes: u64) -> anyhow::Result<f64> {
    timed(async {
        let [program, arguments @ ..] = sink();
        let mut session = client.exec(program, arguments).start().await?;
        let mut stdin = session.take_stdin().context("the input")?;
        fill(&mut stdin, bytes).await?;
        stdin.shutdown().await?;
        drop(stdin);
        check(&session.wait().await?)
    })
    .await
}

fn check(status: &ExitStatus) -> anyhow::Result<()> {
    ensure!(status.success(), "{status:?}");
    Ok(())
}

/// The command that writes so many bytes. Not `head -c`, which busybox has byte by byte.
pub(super) fn source(bytes: u64) -> [String; 5] {
    let count = format!("count={}", bytes / PIECE_BYTES);
    let piece = format!("bs={PIECE_BYTES}");
    ["dd", "if=/dev/zero", "status=none", &piece, &count].map(str::to_owned)
}

/// The command that reads its input to the end.
pub(super) fn sink() -> [String; 4] {
    let piece = format!("bs={PIECE_BYTES}");
    ["dd", "of=/dev/null", "status=none", &piece].map(str::to_owned)
}

/// Reads to the end, which must come after so many bytes.
pub(super) async fn drain(mut stream: impl AsyncRead + Unpin, bytes: u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES)?];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => total += u64::try_from(read)?,
        }
    }
    ensure!(total == bytes, "{total} of {bytes} bytes");
    Ok(())
}

/// Writes so many bytes.
pub(super) async fn fill(stream: &mut (impl AsyncWrite + Unpin), bytes: u64) -> anyhow::Result<()> {
    let piece = vec![0; usize::try_from(PIECE_BYTES)?];
    for _ in 0..bytes / PIECE_BYTES {
        stream.write_all(&piece).await?;
    }
    Ok(())
}

/// `at_once` tasks, each with `each` runs one after another. Gives the seconds of all together.
pub(super) async fn crowd<F>(
    at_once: usize,
    each: usize,
    once: impl Fn() -> F + Clone + Send + 'static,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<f64>> + Send + 'static,
{
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let once = once.clone();
        tasks.spawn(async move {
            for _ in 0..each {
                once().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(begin.elapsed().as_secs_f64())
}
