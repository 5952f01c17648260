//! A terminal in which `cat` runs, and how long a key's echo takes: the terminal itself echoes, not
//! `cat`.

use std::{process::Stdio, sync::Arc};

use anyhow::{Context, ensure};
use harness::RawClient;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    sync::Mutex,
};
use vsock_agent_client::{Client, TerminalSize};

use super::{program::Words, turns::timed};

/// The key.
const KEY: u8 = b'x';

/// Both directions of an open terminal, which is closed with the last clone.
#[derive(Clone)]
pub(super) struct Keyboard(Arc<Mutex<Ends>>);

struct Ends {
    keys: Box<dyn AsyncWrite + Send + Unpin>,
    echo: Box<dyn AsyncRead + Send + Unpin>,
    /// What would end with its drop.
    _open: Box<dyn Send>,
}

impl Keyboard {
    fn new(
        keys: impl AsyncWrite + Send + Unpin + 'static,
        echo: impl AsyncRead + Send + Unpin + 'static,
        open: impl Send + 'static,
    ) -> Self {
        Self(Arc::new(Mutex::new(Ends {
            keys: Box::new(keys),
            echo: Box::new(echo),
            _open: Box::new(open),
        })))
    }

    /// By the library.
    pub(super) async fn of_client(client: &Client) -> anyhow::Result<Self> {
        let size = TerminalSize {
            columns: 80,
            lines: 24,
        };
        let mut session = client.exec("cat", [""; 0]).tty(size).start().await?;
        let keys = session.take_stdin().context("the input")?;
        let echo = session.take_stdout().context("the output")?;
        Ok(Self::new(keys, echo, session))
    }

    /// By a program.
    pub(super) fn of_program(words: &Words) -> anyhow::Result<Self> {
        let mut command = words.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let keys = child.stdin.take().context("the input")?;
        let echo = child.stdout.take().context("the output")?;
        Ok(Self::new(keys, echo, child))
    }

    /// By a connection to something that echoes.
    pub(super) async fn of_stream(port: &RawClient) -> Self {
        let (echo, keys) = split(port.connect().await);
        Self::new(keys, echo, ())
    }

    /// From a key to its echo.
    pub(super) async fn press(self) -> anyhow::Result<f64> {
        let mut ends = self.0.lock().await;
        timed(async {
            ends.keys.write_all(&[KEY]).await?;
            ends.keys.flush().await?;
            let echo = ends.echo.read_u8().await?;
            ensure!(echo == KEY, "{echo} is echoed");
            Ok(())
        })
        .await
    }
}
