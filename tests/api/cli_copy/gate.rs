//! A way to the agent that lets so many bytes through in one direction, then holds them, until it is
//! opened or cut.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// Which bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the agent.
    In,
    /// From the agent.
    Out,
}

/// The way. `Drop` cuts it.
pub(super) struct Gate {
    socket: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What may still pass.
    left: u64,
    passed: u64,
    cut: bool,
    streams: Vec<UnixStream>,
}

impl Gate {
    /// A socket in `folder` that leads to the agent at `to`.
    pub(super) fn new(folder: &Path, to: &Path, direction: Direction, limit: u64) -> Self {
        let socket = folder.join("gate.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared::default());
        shared.state.lock().unwrap().left = limit;
        let (accepting, to) = (Arc::clone(&shared), to.to_owned());
        thread::spawn(move || {
            for near in listener.incoming() {
                if accepting.state.lock().unwrap().cut {
                    return;
                }
                accepting.join(near.unwrap(), &to, direction);
            }
        });
        Self { socket, shared }
    }

    /// The endpoint, as the command line writes it.
    pub(super) fn endpoint(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// Bytes that passed in the direction that is counted.
    pub(super) fn passed(&self) -> u64 {
        self.shared.state.lock().unwrap().passed
    }

    /// Lets everything through.
    pub(super) fn open(&self) {
        self.shared.state.lock().unwrap().left = u64::MAX;
        self.shared.changed.notify_all();
    }

    /// Ends the connections, for both ends. What is held is lost.
    pub(super) fn cut(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.cut = true;
        for stream in state.streams.drain(..) {
            // It may be over already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.cut();
        // Wakes the thread that accepts.
        let _ = UnixStream::connect(&self.socket);
    }
}

impl Shared {
    fn join(self: &Arc<Self>, near: UnixStream, to: &Path, direction: Direction) {
        let far = UnixStream::connect(to).unwrap();
        let clone = |stream: &UnixStream| stream.try_clone().unwrap();
        let streams = [clone(&near), clone(&far)];
        self.state.lock().unwrap().streams.extend(streams);
        let ways = [
            (clone(&near), clone(&far), Direction::In),
            (far, near, Direction::Out),
        ];
        for (from, to, way) in ways {
            let shared = Arc::clone(self);
            thread::spawn(move || shared.pump(from, to, way == direction));
        }
    }

    fn pump(&self, mut from: UnixStream, mut to: UnixStream, counted: bool) {
        let mut buffer = [0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let allowed = if counted {
                    self.take(rest.len())
                } else {
                    rest.len()
                };
                if allowed == 0 || to.write_all(&rest[..allowed]).is_err() {
                    return;
                }
                rest = &rest[allowed..];
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// How many of so many bytes may pass, when some may; none when the way is cut.
    fn take(&self, wanted: usize) -> usize {
        let state = self.state.lock().unwrap();
        let mut state = self
            .changed
            .wait_while(state, |state| state.left == 0 && !state.cut)
            .unwrap();
        if state.cut {
            return 0;
        }
        let wanted = u64::try_from(wanted).unwrap();
        let allowed = wanted.min(state.left);
        if state.left != u64::MAX {
            state.left -= allowed;
        }
        state.passed += allowed;
        usize::try_from(allowed).unwrap()
    }
}
