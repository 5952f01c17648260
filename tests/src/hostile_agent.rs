//! An agent that means no good, on a Unix socket: it speaks HTTP well enough to be listened to, and
//! lies. What it does follows from a seed.

mod http;
mod sockets;
mod text;

use std::{
    io::{self, Read},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::Random;

/// How long it does something endless, and holds a connection on which nothing happens. Longer than
/// a client waits that was told to wait a second.
const LIFE: Duration = Duration::from_secs(4);

/// What one does besides answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Anything, of every kind.
    Mixed,
    /// Answers well; no directory has an end. After this many entries it closes the connection.
    EndlessListings {
        /// Entries of all directories together.
        entries: usize,
    },
}

/// A hostile agent that listens. It ends when it is dropped.
#[derive(Debug)]
pub struct HostileAgent {
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HostileAgent {
    /// Listens on `socket`.
    #[must_use]
    pub fn start(socket: &Path, seed: u64, manner: Manner) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else {
                    break;
                };
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let connection = Connection::new(stream, seed.wrapping_add(number), manner);
                connections.push(thread::spawn(move || {
                    // The client goes when it has seen enough, in the middle of anything.
                    let _ = connection.run();
                }));
                connections.retain(|connection| !connection.is_finished());
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self {
            socket: socket.to_owned(),
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for HostileAgent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection, and what is to become of it.
struct Connection {
    stream: UnixStream,
    random: Random,
    manner: Manner,
    /// Of a hundred answers, how many are none.
    bad_percent: usize,
}

impl Connection {
    fn new(stream: UnixStream, seed: u64, manner: Manner) -> Self {
        // One that is never written to or read from is given up.
        stream.set_read_timeout(Some(LIFE)).unwrap();
        stream.set_write_timeout(Some(LIFE)).unwrap();
        let mut random = Random::new(seed);
        let bad_percent = match manner {
            Manner::Mixed => *random.pick(&[0, 5, 25, 60]),
            Manner::EndlessListings { .. } => 0,
        };
        Self {
            stream,
            random,
            manner,
            bad_percent,
        }
    }

    /// Waits until the client goes, but not for ever.
    fn linger(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while self.stream.read(&mut buffer)? > 0 {}
        Ok(())
    }
}
