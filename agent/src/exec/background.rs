//! Reads and discards the output of background jobs whose command has exited, and of commands that
//! continue without their client.
//!
//! After `sh -c 'server &'`, the server still has the command's pipes. A pipe without a reader would
//! kill it with `SIGPIPE` at its next output. So the agent keeps the reading ends open until the job
//! closes the writing ends. The read rate of all pipes together is limited; a job that writes faster
//! blocks.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    sync::{Mutex, Semaphore},
    time::sleep,
};

use super::pump::{self, Source};
use crate::shutdown::Shutdown;

/// Most pipes kept open. A job beyond that gets `SIGPIPE`.
const MAX_PIPES: usize = 1024;

/// Delay after each read of up to [`defaults::MAX_OUTPUT_BYTES`](crate::defaults::MAX_OUTPUT_BYTES).
/// One pipe is read at a time: 6 MiB/s in all.
const READ_DELAY: Duration = Duration::from_millis(5);

/// The outputs without a client. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct BackgroundOutputs {
    pipes: Arc<Semaphore>,
    turn: Arc<Mutex<()>>,
    shutdown: Shutdown,
}

impl BackgroundOutputs {
    /// All outputs are closed when `shutdown` begins.
    pub(super) fn new(shutdown: Shutdown) -> Self {
        Self {
            pipes: Arc::new(Semaphore::new(MAX_PIPES)),
            turn: Arc::default(),
            shutdown,
        }
    }

    /// Does what is left to do for the client of a command that has ended.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.shutdown.child_token();
        self.shutdown.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// Reads from a pipe or terminal until all writers have closed it.
    pub(super) fn keep<S: Source + Sync + 'static>(&self, pipe: S) {
        let Ok(kept) = Arc::clone(&self.pipes).try_acquire_owned() else {
            tracing::warn!("too many background jobs: the output of one is closed");
            return;
        };
        let (turn, stop) = (Arc::clone(&self.turn), self.shutdown.child_token());
        self.shutdown.spawn(async move {
            select! {
                () = read_to_end(&pipe, &turn) => {}
                () = stop.cancelled() => {}
            }
            drop(kept);
        });
    }
}

async fn read_to_end<S: Source + Sync>(pipe: &S, turn: &Mutex<()>) {
    while pipe.readable().await.is_ok() {
        let _turn = turn.lock().await;
        if !pump::discard(pipe) {
            return;
        }
        sleep(READ_DELAY).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::unix::pipe};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pipe_is_kept_until_its_writer_goes_and_then_makes_room() {
        let background = BackgroundOutputs::new(Shutdown::default());
        let (mut writer, reader) = pipe::pipe().unwrap();
        background.keep(reader);
        for _ in 0..100 {
            writer.write_all(&[0; 65536]).await.unwrap();
        }
        assert_eq!(background.pipes.available_permits(), MAX_PIPES - 1);
        drop(writer);
        while background.pipes.available_permits() < MAX_PIPES {
            sleep(READ_DELAY).await;
        }
    }

    #[tokio::test]
    async fn the_number_of_pipes_is_bounded() {
        let background = BackgroundOutputs::new(Shutdown::default());
        let all = u32::try_from(MAX_PIPES).unwrap();
        let _taken = background.pipes.try_acquire_many(all).unwrap();
        let (mut writer, reader) = pipe::pipe().unwrap();
        background.keep(reader);
        writer.write_all(b"x").await.unwrap_err();
    }
}
