//! A command as LXD 5.0.2's host runs it (`driver_qemu.go`, `client/lxd_instances.go`): each request and
//! each websocket is a connection of its own, with a full handshake.

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use harness::{RawClient, raw::Socket};
use serde_json::{Value, json};

use super::turns::timed;

/// `true`, from the question what the agent is to its result and the end of both outputs.
pub(super) async fn nothing(client: RawClient) -> anyhow::Result<f64> {
    timed(async {
        let server = client.get("/1.0").await;
        ensure!(server.status == 200, "{server:?}");
        let events = client.websocket("/1.0/events").await;
        let events = events.map_err(|status| anyhow::anyhow!("no events: {status}"))?;
        let mut exec = client.exec(&["true"], json!({})).await;
        exec.end_input().await;
        let path = format!("/1.0/operations/{}", exec.id);
        let mut take = |name| exec.sockets.remove(name).context("an output");
        let (stdout, stderr) = (take("1")?, take("2")?);
        let (operation, stdout, stderr, code) = tokio::join!(
            client.get(&path),
            to_end(stdout),
            to_end(stderr),
            result(events, &exec.id),
        );
        stdout.and(stderr)?;
        ensure!(operation.status == 200, "{operation:?}");
        ensure!(code? == 0, "`true` fails");
        Ok(())
    })
    .await
}

/// Reads an output until its end, which is a text message.
async fn to_end(mut socket: Socket) -> anyhow::Result<()> {
    while let Some(message) = socket.next().await {
        if message?.is_text() {
            return Ok(());
        }
    }
    anyhow::bail!("an output without an end")
}

/// Reads events until the operation has ended, and gives the command's exit status.
async fn result(mut events: Socket, id: &str) -> anyhow::Result<i64> {
    while let Some(message) = events.next().await {
        let message = message?;
        let event: Value = match message.to_text() {
            Ok(text) if message.is_text() => serde_json::from_str(text)?,
            _ => continue,
        };
        let operation = &event["metadata"];
        if operation["id"] == id && operation["status_code"] == 200 {
            return operation["metadata"]["return"]
                .as_i64()
                .context("an exit status");
        }
    }
    anyhow::bail!("no events any more")
}
