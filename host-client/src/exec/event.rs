//! Everything that a command does, in one stream.

use std::{
    fmt,
    future::pending,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};

use super::{ExecControl, ExecReader, ExecSession, ExitStatus};
use crate::error::ClientError;

/// Something that a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecEvent {
    /// It wrote to standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended, and everything that it wrote came before.
    Exit(ExitStatus),
}

/// The events of a command, in the order of their arrival: its output, then its end, then nothing more.
///
/// Standard output and standard error are two pipes: which of two writes to different ones came first is not
/// known. An error is the last event too. Dropping the stream ends the command. A command whose events are
/// not read blocks eventually.
pub struct ExecEvents {
    // Only for `Sync`: it is never locked.
    stream: Mutex<BoxStream<'static, Result<ExecEvent, ClientError>>>,
    control: ExecControl,
}

impl fmt::Debug for ExecEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecEvents").finish_non_exhaustive()
    }
}

impl ExecEvents {
    pub(super) fn new(mut session: ExecSession) -> Self {
        let control = session.control();
        let source = Source {
            stdout: session.take_stdout(),
            stderr: session.take_stderr(),
            session: Some(session),
        };
        let stream = stream::unfold(source, Source::next).boxed();
        Self {
            stream: Mutex::new(stream),
            control,
        }
    }

    /// A handle for window sizes and signals.
    #[must_use]
    pub fn control(&self) -> ExecControl {
        self.control.clone()
    }

    /// The next event; `None` after the last.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no event is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// As of [`ExecSession::wait`], in place of [`ExecEvent::Exit`].
    pub async fn next(&mut self) -> Option<Result<ExecEvent, ClientError>> {
        StreamExt::next(self).await
    }
}

impl Stream for ExecEvents {
    type Item = Result<ExecEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.stream.get_mut();
        stream
            .unwrap_or_else(PoisonError::into_inner)
            .poll_next_unpin(cx)
    }
}

struct Source {
    stdout: Option<ExecReader>,
    stderr: Option<ExecReader>,
    /// `None` after the end.
    session: Option<ExecSession>,
}

impl Source {
    async fn next(mut self) -> Option<(Result<ExecEvent, ClientError>, Self)> {
        while self.stdout.is_some() || self.stderr.is_some() {
            let event = tokio::select! {
                bytes = chunk(&mut self.stdout) => bytes.map(ExecEvent::Stdout),
                bytes = chunk(&mut self.stderr) => bytes.map(ExecEvent::Stderr),
            };
            if let Some(event) = event {
                return Some((Ok(event), self));
            }
        }
        let status = self.session.take()?.wait().await;
        Some((status.map(ExecEvent::Exit), self))
    }
}

/// The next bytes of a stream; `None`, and no reader any more, at its end. The reason of a broken stream is
/// in the result of the session. Waits for ever without a reader.
async fn chunk(reader: &mut Option<ExecReader>) -> Option<Vec<u8>> {
    let Some(open) = reader else {
        return pending().await;
    };
    let bytes = open.chunk().await.ok().flatten();
    if bytes.is_none() {
        *reader = None;
    }
    bytes.map(Vec::from)
}
