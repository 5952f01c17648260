//! One program for a guest, and for this computer with tokio's `Command`: it runs a script, shows what it
//! writes to both outputs as it comes, kills it when its time is over, and returns its exit status.
//!
//! `cargo run --example stream -- unix:PATH SCRIPT MILLISECONDS`, or `here` in place of the endpoint

use std::{
    error::Error,
    process::{ExitCode, Stdio},
    time::Duration,
};

use tokio::{
    io::{copy, stderr, stdout},
    process::Command,
    time::timeout,
};
use vsock_agent_client::{Client, Security};

async fn in_guest(client: &Client, script: &str, limit: Duration) -> Result<i32, Box<dyn Error>> {
    let mut session = client.exec("sh", ["-c", script]).stdin("").start().await?;
    let mut out = session.take_stdout().ok_or("taken")?;
    let mut err = session.take_stderr().ok_or("taken")?;
    let (mut to_out, mut to_err) = (stdout(), stderr());
    let shown =
        async { tokio::try_join!(copy(&mut out, &mut to_out), copy(&mut err, &mut to_err)) };
    if timeout(limit, shown).await.is_err() {
        session.kill().await?;
    }
    Ok(session.wait().await?.code)
}

async fn here(script: &str, limit: Duration) -> Result<Option<i32>, Box<dyn Error>> {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut out = child.stdout.take().ok_or("taken")?;
    let mut err = child.stderr.take().ok_or("taken")?;
    let (mut to_out, mut to_err) = (stdout(), stderr());
    let shown =
        async { tokio::try_join!(copy(&mut out, &mut to_out), copy(&mut err, &mut to_err)) };
    if timeout(limit, shown).await.is_err() {
        child.kill().await?;
    }
    Ok(child.wait().await?.code())
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [place, script, milliseconds] = &arguments[..] else {
        return Err("an endpoint or `here`, a script and milliseconds are needed".into());
    };
    let limit = Duration::from_millis(milliseconds.parse()?);
    let code = if place == "here" {
        // As a shell says it of a signal.
        here(script, limit).await?.unwrap_or(137)
    } else {
        let client = Client::new(place.parse()?, Security::Plain);
        in_guest(&client, script, limit).await?
    };
    Ok(u8::try_from(code)?.into())
}
