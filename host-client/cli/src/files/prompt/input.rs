//! Reads the lines of a batch from a file or stdin.

use std::{io, path::Path};

use anyhow::{Context, bail};
use bytes::BytesMut;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt},
};

use crate::{output, stdio};

/// Longest line, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Bytes read at once.
const BUFFER_BYTES: usize = 8 * 1024;

/// The lines of a file or of stdin.
pub(super) struct Lines {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
}

impl Lines {
    pub(super) fn stdin() -> io::Result<Self> {
        Ok(Self::new(stdio::stdin_reader()?))
    }

    pub(super) fn file(path: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::open(path);
        let file = file.with_context(|| format!("cannot read {}", output::escape_path(path)))?;
        Ok(Self::new(File::from_std(file)))
    }

    fn new(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self {
            reader: Box::new(reader),
            buffer: BytesMut::new(),
        }
    }

    /// The next line without its line feed, which the last line need not have.
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
            self.buffer.reserve(BUFFER_BYTES);
            let read = self.reader.read_buf(&mut self.buffer).await;
            if read.context("cannot read the commands")? == 0 {
                let rest = self.buffer.split();
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }
}
