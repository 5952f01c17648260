//! The connections of a service: never more than some, and a new one always finds a place.

use std::{collections::VecDeque, convert::Infallible};

use tokio::sync::oneshot;

/// Those that are there, the oldest first.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: VecDeque<oneshot::Sender<Infallible>>,
}

/// One of them, until this is dropped. It completes, with an error, when the connection has to make
/// room for another.
pub(super) type Connection = oneshot::Receiver<Infallible>;

impl Connections {
    /// None yet, and `most` at once.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            open: VecDeque::new(),
        }
    }

    /// One more. If there are too many then, the oldest is told to end: answers take milliseconds, so
    /// it is one that does not ask or does not read.
    pub(super) fn admit(&mut self) -> Connection {
        self.open.retain(|connection| !connection.is_closed());
        if self.open.len() >= self.most {
            self.open.pop_front();
        }
        let (end, connection) = oneshot::channel();
        self.open.push_back(end);
        connection
    }
}

#[cfg(test)]
mod tests {
    use oneshot::error::TryRecvError;

    use super::*;

    #[test]
    fn the_oldest_that_is_still_there_makes_room() {
        let mut connections = Connections::new(2);
        let first = connections.admit();
        let mut second = connections.admit();
        drop(first);
        let mut third = connections.admit();
        assert_eq!(second.try_recv(), Err(TryRecvError::Empty));
        let mut fourth = connections.admit();
        assert_eq!(second.try_recv(), Err(TryRecvError::Closed));
        for one in [&mut third, &mut fourth] {
            assert_eq!(one.try_recv(), Err(TryRecvError::Empty));
        }
    }
}
