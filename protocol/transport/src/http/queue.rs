//! A body of frames that are made elsewhere, and the window of a channel in it.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::CancellationToken;

/// Memory of a queued frame beside its bytes: its place in the queue, and the overhead of two allocations.
const FRAME_BYTES: usize = 64;

/// Largest piece of a body that is made of several frames, in bytes. A receiver ends a connection with very many
/// pieces that it has not read: h2 counts each as 256 bytes at least, of a limit of half the connection's window.
const MAX_JOINED_BYTES: usize = 8 * 1024;

/// The frames of a [`QueuedBody`], in their order. Clones share them.
///
/// Nothing is waited for: a caller that can wait asks [`poll_room`](Self::poll_room) before it adds a frame.
#[derive(Debug, Clone)]
pub struct BodyQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Bytes at which the queue counts as full.
    limit: usize,
    /// Cancelled when the body is dropped or abandoned.
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// Of the frames, with [`FRAME_BYTES`] for each.
    bytes: usize,
    end: Option<End>,
    reader: Option<Waker>,
    waiting: Vec<Waker>,
}

impl State {
    /// The next frame, joined with the next ones while they are small together.
    fn pop(&mut self) -> Option<Bytes> {
        let first = self.pop_one()?;
        if !self.is_small_with(first.len()) {
            return Some(first);
        }
        let mut joined = BytesMut::from(&first[..]);
        while self.is_small_with(joined.len())
            && let Some(next) = self.pop_one()
        {
            joined.extend_from_slice(&next);
        }
        Some(joined.freeze())
    }

    fn pop_one(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len() + FRAME_BYTES;
        Some(frame)
    }

    /// Whether there is another frame that is small together with `length` bytes.
    fn is_small_with(&self, length: usize) -> bool {
        let next = self.frames.front().map(Bytes::len);
        next.is_some_and(|next| length + next <= MAX_JOINED_BYTES)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Abandoned,
}

impl BodyQueue {
    /// An empty queue that is full at `limit` bytes of memory, and the body that sends it.
    #[must_use]
    pub fn new(limit: usize) -> (Self, QueuedBody) {
        let queue = Self(Arc::new(Shared {
            state: Mutex::default(),
            limit,
            closed: CancellationToken::new(),
        }));
        (queue.clone(), QueuedBody(queue))
    }

    /// Adds a frame, also to a full queue. Without effect after the end.
    pub fn push(&self, frame: Bytes) {
        let _ = self.try_push(frame);
    }

    /// As [`push`](Self::push). False after the end.
    #[must_use]
    pub fn try_push(&self, frame: Bytes) -> bool {
        let reader = {
            let mut state = self.state();
            if state.end.is_some() || self.is_closed() {
                return false;
            }
            state.bytes += frame.len() + FRAME_BYTES;
            state.frames.push_back(frame);
            state.reader.take()
        };
        wake(reader);
        true
    }

    /// Ends the body after the frames that are queued.
    pub fn finish(&self) {
        self.end(End::Finished);
    }

    /// Ends the body with an error and closes the queue, unless it is finished. HTTP/2 resets the stream then.
    pub fn abandon(&self) {
        if self.end(End::Abandoned) == End::Abandoned {
            self.close();
        }
    }

    /// Sets the end if there is none. Returns the end.
    fn end(&self, end: End) -> End {
        let (end, reader) = {
            let mut state = self.state();
            (*state.end.get_or_insert(end), state.reader.take())
        };
        wake(reader);
        end
    }

    /// Discards what is queued, and ends all waiting.
    fn close(&self) {
        self.0.closed.cancel();
        let (frames, waiting) = {
            let mut state = self.state();
            state.bytes = 0;
            (
                std::mem::take(&mut state.frames),
                std::mem::take(&mut state.waiting),
            )
        };
        drop(frames);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Memory of the frames that wait, in bytes, as the limit counts it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Whether the body was dropped or abandoned: everything was sent, or the peer is lost.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.is_cancelled()
    }

    /// Resolves when the body is dropped or abandoned. Cancel safe.
    pub async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// A token that is cancelled when the body is dropped or abandoned.
    #[must_use]
    pub fn closed_token(&self) -> CancellationToken {
        self.0.closed.clone()
    }

    /// Ready when the queue is not full, or closed.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.bytes < self.0.limit || self.is_closed() {
            return Poll::Ready(());
        }
        if !state
            .waiting
            .iter()
            .any(|waker| waker.will_wake(cx.waker()))
        {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits for [`poll_room`](Self::poll_room). Cancel safe.
    pub async fn room(&self) {
        poll_fn(|cx| self.poll_room(cx)).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that sends the frames of a [`BodyQueue`]. `Drop` closes the queue.
#[derive(Debug)]
pub struct QueuedBody(BodyQueue);

impl Body for QueuedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let limit = self.0.0.limit;
        let mut state = self.0.state();
        if state.end == Some(End::Abandoned) {
            let error = io::Error::other("the sender has gone");
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(frame) = state.pop() {
            let waiting = if state.bytes < limit {
                std::mem::take(&mut state.waiting)
            } else {
                Vec::new()
            };
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if state.end.is_some() {
            return Poll::Ready(None);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state();
        state.end == Some(End::Finished) && state.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for QueuedBody {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Bytes that the sender of a channel may still send. One task waits for it at a time.
#[derive(Debug)]
pub struct Window(Mutex<WindowState>);

#[derive(Debug)]
struct WindowState {
    bytes: u32,
    is_closed: bool,
    waiting: Option<Waker>,
}

impl Window {
    /// A window of `bytes`.
    #[must_use]
    pub const fn new(bytes: u32) -> Self {
        Self(Mutex::new(WindowState {
            bytes,
            is_closed: false,
            waiting: None,
        }))
    }

    /// Adds to the window. False if it were larger than a window can be.
    pub fn grant(&self, bytes: u32) -> bool {
        let mut state = self.state();
        let Some(sum) = state.bytes.checked_add(bytes) else {
            return false;
        };
        state.bytes = sum;
        let waiting = state.waiting.take();
        drop(state);
        wake(waiting);
        true
    }

    /// Ends it: nothing more can be sent.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let waiting = state.waiting.take();
        drop(state);
        wake(waiting);
    }

    /// Takes up to `wanted` bytes, at least 1. `None` when the window is closed.
    pub fn poll_take(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<Option<usize>> {
        let mut state = self.state();
        if state.is_closed {
            return Poll::Ready(None);
        }
        if state.bytes == 0 {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = state.bytes.min(u32::try_from(wanted).unwrap_or(u32::MAX));
        state.bytes -= taken;
        Poll::Ready(usize::try_from(taken).ok())
    }

    /// Waits for [`poll_take`](Self::poll_take). Cancel safe: nothing is taken then.
    pub async fn take(&self, wanted: usize) -> Option<usize> {
        poll_fn(|cx| self.poll_take(cx, wanted)).await
    }

    fn state(&self) -> MutexGuard<'_, WindowState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use tokio::join;

    use super::*;

    #[tokio::test]
    async fn frames_are_sent_in_their_order_and_then_the_end() {
        let (queue, body) = BodyQueue::new(10);
        queue.push(Bytes::from_static(b"a"));
        queue.push(Bytes::from_static(b"b"));
        queue.finish();
        queue.push(Bytes::from_static(b"late"));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "ab");
        assert!(queue.is_closed());
    }

    #[tokio::test]
    async fn an_abandoned_body_is_an_error() {
        let (queue, body) = BodyQueue::new(10);
        queue.push(Bytes::from_static(b"a"));
        queue.abandon();
        body.collect().await.unwrap_err();
    }

    /// hyper does not ask for more while the peer takes nothing.
    #[tokio::test]
    async fn an_abandoned_queue_is_closed_before_its_body_is_asked() {
        let (queue, body) = BodyQueue::new(1);
        queue.push(Bytes::from_static(b"a"));
        let mut room = pin!(queue.room());
        assert!(room.as_mut().now_or_never().is_none());
        queue.abandon();
        join!(room, queue.closed());
        assert_eq!(queue.bytes(), 0);
        drop(body);
    }

    #[tokio::test]
    async fn a_finished_queue_is_not_abandoned() {
        let (queue, body) = BodyQueue::new(10);
        queue.push(Bytes::from_static(b"a"));
        queue.finish();
        queue.abandon();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "a");
    }

    #[tokio::test]
    async fn small_frames_that_wait_are_joined() {
        let (queue, mut body) = BodyQueue::new(10);
        let large = Bytes::from(vec![b'l'; MAX_JOINED_BYTES]);
        for frame in [
            Bytes::from("a"),
            Bytes::from("b"),
            large.clone(),
            Bytes::from("c"),
        ] {
            queue.push(frame);
        }
        for expected in [Bytes::from("ab"), large, Bytes::from("c")] {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(piece, expected);
        }
        assert_eq!(queue.bytes(), 0);
    }

    #[tokio::test]
    async fn small_frames_count_with_their_memory() {
        let (queue, _body) = BodyQueue::new(1000);
        for _ in 0..1000 / FRAME_BYTES {
            assert!(queue.room().now_or_never().is_some());
            queue.push(Bytes::from_static(b"a"));
        }
        queue.push(Bytes::new());
        assert!(queue.room().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_full_queue_has_room_again_when_it_is_sent_or_dropped() {
        let (queue, mut body) = BodyQueue::new(2);
        queue.push(Bytes::from_static(b"aa"));
        let mut room = pin!(queue.room());
        assert!(room.as_mut().now_or_never().is_none());
        let (_, frame) = join!(room, body.frame());
        frame.unwrap().unwrap();
        queue.push(Bytes::from_static(b"aa"));
        join!(queue.room(), async { drop(body) });
    }

    #[tokio::test]
    async fn a_window_gives_what_was_granted() {
        let window = Window::new(3);
        assert_eq!(window.take(2).await, Some(2));
        assert_eq!(window.take(2).await, Some(1));
        let (taken, is_granted) = join!(window.take(5), async { window.grant(4) });
        assert_eq!((taken, is_granted), (Some(4), true));
        assert!(window.grant(u32::MAX));
        assert!(!window.grant(1));
        window.close();
        assert_eq!(window.take(1).await, None);
    }
}
