//! Reader and writer: two tasks.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    join,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use super::{
    Ending, Shared, dispatch,
    frames::Frames,
    outbox::{Outbox, Segment, gather},
    table::Table,
};

/// The two tasks. Dropping this ends them, and closes the connection.
#[derive(Debug)]
pub(super) struct Tasks {
    _tasks: JoinSet<()>,
}

impl Tasks {
    pub(super) fn start<S>(stream: S, frames: Frames, shared: &Arc<Shared>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let mut tasks = JoinSet::new();
        let ours = Arc::clone(shared);
        tasks.spawn(async move {
            if let Err(error) = write_frames(&ours.outbox, writer).await {
                ours.table.end(Ending::Lost(error.to_string()));
            }
        });
        let ours = Arc::clone(shared);
        tasks.spawn(async move {
            let ending = read_replies(reader, frames, &ours.table, ours.silence).await;
            ours.table.end(ending);
        });
        Self { _tasks: tasks }
    }
}

/// Writes frames as they come, several at once if several wait. The next ones are gathered during a
/// write: reading a file and encrypting or copying into the socket overlap.
async fn write_frames(outbox: &Outbox, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
    let (mut full, mut free) = (Vec::new(), Vec::new());
    loop {
        let mut segments = outbox.take().await;
        if segments.is_empty() {
            return Ok(());
        }
        (segments, full) = gathered(segments, full).await?;
        while !full.is_empty() {
            let (next, written) = join!(gathered(segments, free), writer.write_all(&full));
            written?;
            free = full;
            (segments, full) = next?;
        }
        writer.flush().await?;
    }
}

/// Replaces the content of `buffer` by the next segments.
async fn gathered(
    mut segments: VecDeque<Segment>,
    mut buffer: Vec<u8>,
) -> io::Result<(VecDeque<Segment>, Vec<u8>)> {
    buffer.clear();
    let is_file = |segment: &Segment| matches!(segment, Segment::File(_));
    let reads_files = segments.iter().any(is_file);
    let work = move || {
        gather(&mut segments, &mut buffer);
        (segments, buffer)
    };
    if reads_files {
        spawn_blocking(work).await.map_err(io::Error::other)
    } else {
        Ok(work())
    }
}

/// Reads replies until the connection ends; returns how it ended.
async fn read_replies(
    mut reader: impl AsyncRead + Unpin,
    mut frames: Frames,
    table: &Table,
    silence: Duration,
) -> Ending {
    loop {
        if let Err(ending) = dispatch(&mut frames, table) {
            return ending;
        }
        let owed = !table.is_idle();
        match timeout(silence, reader.read(frames.space())).await {
            Ok(Ok(0)) => return Ending::closed(),
            Ok(Ok(count)) => frames.filled(count),
            Ok(Err(error)) => return Ending::Lost(error.to_string()),
            Err(_) if owed && !table.is_idle() => return Ending::Silent(silence),
            // No reply is due, or not for that long.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::SILENCE_TIMEOUT, *};

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_request_on() {
        let (near, _far) = tokio::io::duplex(64);
        let table = Arc::new(Table::default());
        let reader = read_replies(near, Frames::new(), &table, SILENCE_TIMEOUT);
        tokio::pin!(reader);
        let quiet = SILENCE_TIMEOUT - Duration::from_secs(10);
        assert!(timeout(quiet, &mut reader).await.is_err());
        let _pending = table.expect(None, None).unwrap();
        let soon = timeout(SILENCE_TIMEOUT, &mut reader).await;
        assert!(soon.is_err(), "{soon:?}");
        let late = timeout(SILENCE_TIMEOUT, reader).await;
        assert_eq!(late.unwrap(), Ending::Silent(SILENCE_TIMEOUT));
    }
}
