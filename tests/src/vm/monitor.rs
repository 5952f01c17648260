//! QEMU's monitor, by which a host asks a VM's hardware for something (QMP).

use std::{io, path::Path};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// A connection to the monitor. A VM has one at a time.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects, and leaves the state in which nothing may be asked.
    pub(super) async fn open(socket: &Path) -> io::Result<Self> {
        let mut monitor = Self(BufReader::new(UnixStream::connect(socket).await?));
        monitor.read().await?;
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// Runs a command, and gives what it returns.
    ///
    /// # Errors
    ///
    /// QEMU's words, or an end of the connection.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let line = format!("{request}\n");
        self.0.get_mut().write_all(line.as_bytes()).await?;
        loop {
            let mut answer = self.read().await?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
            // An event: somebody else's.
        }
    }

    async fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}
