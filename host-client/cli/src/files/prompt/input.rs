//! Lines of a batch: from a file or stdin.

use std::{io, path::Path};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use tokio::{fs::File, io::AsyncReadExt, sync::mpsc};

use crate::{output, stdio};

/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Bytes read at once.
const BUFFER_BYTES: usize = 8 * 1024;

/// Lines, one after the other.
#[derive(Debug)]
pub(super) struct Lines {
    source: Source,
    buffer: BytesMut,
}

#[derive(Debug)]
enum Source {
    Stdin(mpsc::Receiver<io::Result<Bytes>>),
    File(File),
}

impl Lines {
    /// Those of stdin.
    pub(super) fn stdin() -> io::Result<Self> {
        Ok(Self::new(Source::Stdin(stdio::stdin()?)))
    }

    /// Those of a file.
    pub(super) fn file(path: &Path) -> anyhow::Result<Self> {
        let name = || output::escape(path.as_os_str().as_encoded_bytes());
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", name()))?;
        Ok(Self::new(Source::File(File::from_std(file))))
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            buffer: BytesMut::new(),
        }
    }

    /// The next line without its end; the last one needs none.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<BytesMut>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(end + 1);
                line.truncate(end);
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                bail!("a line of more than {MAX_LINE_BYTES} bytes");
            }
            if !self.read_more().await.context("cannot read the commands")? {
                let rest = self.buffer.split();
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    /// False at the end.
    async fn read_more(&mut self) -> io::Result<bool> {
        match &mut self.source {
            Source::Stdin(pieces) => match pieces.recv().await {
                Some(piece) => self.buffer.extend_from_slice(&piece?),
                None => return Ok(false),
            },
            Source::File(file) => {
                self.buffer.reserve(BUFFER_BYTES);
                return Ok(file.read_buf(&mut self.buffer).await? > 0);
            }
        }
        Ok(true)
    }
}
