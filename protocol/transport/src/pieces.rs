//! A queue of bytes between the task that receives them and the one that uses them.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};

/// Pieces below this size are copied and collected, in bytes: a peer may send one byte at a time, and each
/// piece of its own would take many times its size. It may also be part of a buffer of up to 256 KiB, the
/// largest frame of HTTP/2 here, which it keeps.
const SMALL_BYTES: usize = 16 * 1024;

/// What a receiver gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<E> {
    /// Bytes, never empty.
    Data(Bytes),
    /// The end, with what the sender said.
    End(E),
}

/// The sending end. It never waits: the peer is bounded by a window. `Drop` without an end ends the queue too.
#[derive(Debug)]
pub struct PieceSender<E>(Arc<Shared<E>>);

/// The receiving end. `Drop` discards what is left.
#[derive(Debug)]
pub struct PieceReceiver<E>(Arc<Shared<E>>);

/// An empty queue. Its memory is at most twice the bytes in it, or for pieces that are parts of larger
/// buffers, 16 times.
#[must_use]
pub fn pieces<E>() -> (PieceSender<E>, PieceReceiver<E>) {
    let shared = Arc::new(Shared(Mutex::new(State {
        whole: VecDeque::new(),
        small: BytesMut::new(),
        end: None,
        is_sender_gone: false,
        is_receiver_gone: false,
        receiver: None,
    })));
    (PieceSender(Arc::clone(&shared)), PieceReceiver(shared))
}

#[derive(Debug)]
struct Shared<E>(Mutex<State<E>>);

#[derive(Debug)]
struct State<E> {
    whole: VecDeque<Bytes>,
    /// Small pieces after those in `whole`.
    small: BytesMut,
    end: Option<E>,
    is_sender_gone: bool,
    is_receiver_gone: bool,
    receiver: Option<Waker>,
}

impl<E> Shared<E> {
    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> State<E> {
    fn push(&mut self, data: Bytes) {
        if data.len() < SMALL_BYTES {
            self.small.extend_from_slice(&data);
            if self.small.len() < SMALL_BYTES {
                return;
            }
        }
        self.close_small();
        if data.len() >= SMALL_BYTES {
            self.whole.push_back(data);
        }
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            let small = std::mem::take(&mut self.small).freeze();
            self.whole.push_back(small);
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl<E> PieceSender<E> {
    /// Adds bytes. False if the receiver is gone.
    #[must_use]
    pub fn send(&self, data: Bytes) -> bool {
        let receiver = {
            let mut state = self.0.state();
            if state.is_receiver_gone {
                return false;
            }
            state.push(data);
            state.receiver.take()
        };
        wake(receiver);
        true
    }

    /// Ends the queue after what is in it.
    pub fn end(self, end: E) {
        self.0.state().end = Some(end);
    }
}

impl<E> Drop for PieceSender<E> {
    fn drop(&mut self) {
        let receiver = {
            let mut state = self.0.state();
            state.is_sender_gone = true;
            state.receiver.take()
        };
        wake(receiver);
    }
}

impl<E> PieceReceiver<E> {
    /// The next piece. `None` when the sender is gone without an end, and after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece<E>>> {
        let mut state = self.0.state();
        if state.whole.is_empty() {
            state.close_small();
        }
        if let Some(data) = state.whole.pop_front() {
            return Poll::Ready(Some(Piece::Data(data)));
        }
        if state.is_sender_gone {
            return Poll::Ready(state.end.take().map(Piece::End));
        }
        state.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for [`poll_next`](Self::poll_next). Cancel safe.
    pub async fn next(&mut self) -> Option<Piece<E>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Discards what is left and refuses more. Returns the number of bytes.
    pub fn close(&mut self) -> usize {
        let (whole, small) = {
            let mut state = self.0.state();
            state.is_receiver_gone = true;
            (
                std::mem::take(&mut state.whole),
                std::mem::take(&mut state.small),
            )
        };
        whole.iter().map(Bytes::len).sum::<usize>() + small.len()
    }
}

impl<E> Drop for PieceReceiver<E> {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use tokio::join;

    use super::*;

    #[tokio::test]
    async fn small_pieces_are_collected_in_their_order() {
        let (sender, mut receiver) = pieces();
        let large = Bytes::from(vec![b'l'; SMALL_BYTES]);
        for data in [
            Bytes::from("a"),
            Bytes::from("b"),
            large.clone(),
            Bytes::from("c"),
        ] {
            assert!(sender.send(data));
        }
        sender.end(7);
        let mut received = Vec::new();
        while let Some(piece) = receiver.next().await {
            received.push(piece);
        }
        let data = |data: &'static str| Piece::Data(Bytes::from(data));
        let expected = [data("ab"), Piece::Data(large), data("c"), Piece::End(7)];
        assert_eq!(received, expected);
    }

    #[tokio::test]
    async fn a_receiver_waits_for_data_and_for_the_end() {
        let (sender, mut receiver) = pieces::<()>();
        let (piece, is_sent) = join!(receiver.next(), async { sender.send("a".into()) });
        assert_eq!(piece, Some(Piece::Data("a".into())));
        assert!(is_sent);
        let (piece, ()) = join!(receiver.next(), async { drop(sender) });
        assert_eq!(piece, None);
    }

    #[test]
    fn a_closed_receiver_counts_what_it_discards() {
        let (sender, mut receiver) = pieces::<()>();
        assert!(sender.send("abc".into()));
        assert_eq!(receiver.close(), 3);
        assert!(!sender.send("d".into()));
    }
}
