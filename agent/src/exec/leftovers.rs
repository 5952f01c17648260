//! Output that nobody wants any more: of background jobs, after the command that started them has ended,
//! and of commands that go on without their client.
//!
//! `sh -c 'server &'` returns, and the server still has the command's pipes. Nobody reads them any
//! more, but a pipe without a reader would end the server with `SIGPIPE` at its next output. So
//! the agent keeps the reading ends until the jobs close theirs, and discards what comes. All
//! pipes together get a limited share of the agent's time; a job that writes faster waits.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    sync::{Mutex, Semaphore},
    time::sleep,
};

use super::pump::{self, Source};
use crate::shutdown::Shutdown;

/// Most pipes kept. Jobs that come on top get `SIGPIPE`.
const MAX_PIPES: usize = 1024;

/// Pause after each read, of [`defaults::MAX_OUTPUT_BYTES`](crate::defaults::MAX_OUTPUT_BYTES) at
/// most. One pipe is read at a time: 6 MiB/s in all.
const PAUSE: Duration = Duration::from_millis(5);

/// Keeps pipes. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Leftovers {
    pipes: Arc<Semaphore>,
    turn: Arc<Mutex<()>>,
    shutdown: Shutdown,
}

impl Leftovers {
    /// Keeps nothing yet. The pipes are closed when the agent shuts down.
    pub(super) fn new(shutdown: Shutdown) -> Self {
        Self {
            pipes: Arc::new(Semaphore::new(MAX_PIPES)),
            turn: Arc::default(),
            shutdown,
        }
    }

    /// Keeps `pipe`, or a terminal, open until nobody can write to it any more.
    pub(super) fn keep<S: Source + Sync + 'static>(&self, pipe: S) {
        let Ok(kept) = Arc::clone(&self.pipes).try_acquire_owned() else {
            tracing::warn!("too many background jobs: one loses its output's reader");
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
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::unix::pipe};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pipe_is_kept_until_its_writer_goes_and_then_makes_room() {
        let leftovers = Leftovers::new(Shutdown::default());
        let (mut writer, reader) = pipe::pipe().unwrap();
        leftovers.keep(reader);
        for _ in 0..100 {
            writer.write_all(&[0; 65536]).await.unwrap();
        }
        assert_eq!(leftovers.pipes.available_permits(), MAX_PIPES - 1);
        drop(writer);
        while leftovers.pipes.available_permits() < MAX_PIPES {
            sleep(PAUSE).await;
        }
    }

    #[tokio::test]
    async fn the_number_of_pipes_is_bounded() {
        let leftovers = Leftovers::new(Shutdown::default());
        let all = u32::try_from(MAX_PIPES).unwrap();
        let _taken = leftovers.pipes.try_acquire_many(all).unwrap();
        let (mut writer, reader) = pipe::pipe().unwrap();
        leftovers.keep(reader);
        writer.write_all(b"x").await.unwrap_err();
    }
}
