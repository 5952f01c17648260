//! Places for peers that have not yet shown who they are.
//!
//! Anybody can connect and say nothing, so such a peer must not keep others out. A peer that has
//! been waited for long enough gives its place to the next one, if there is no other; which of them goes is chosen at random, so that a client that is slow has a chance
//! whatever the others do (as with OpenSSH's `MaxStartups`).

use std::{
    future::{Future, poll_fn},
    hash::{BuildHasher, Hasher, RandomState},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
};

use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Duration, Instant, sleep_until},
};

/// Some places for all, and some more for privileged peers alone.
#[derive(Debug)]
pub(crate) struct Admission {
    for_all: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    /// How long a peer is waited for in any case.
    grace: Duration,
    /// The peers that are waited for and may be told to leave. Never locked across an `.await`.
    waited_for: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_id: u64,
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    id: u64,
    since: Instant,
    leave: oneshot::Sender<()>,
}

impl Admission {
    /// `for_all` places that anybody may have, and `reserved` ones. Nobody must leave who was waited
    /// for no longer than `grace`.
    pub(crate) fn new(for_all: usize, reserved: usize, grace: Duration) -> Arc<Self> {
        Arc::new(Self {
            for_all: Arc::new(Semaphore::new(for_all)),
            reserved: Arc::new(Semaphore::new(reserved)),
            grace,
            waited_for: Mutex::default(),
        })
    }

    /// Takes a place, as soon as there is one: those who ask are served in turn. When all are
    /// taken, that takes about the grace for each as many as there are places.
    pub(crate) async fn enter(self: &Arc<Self>, is_privileged: bool) -> Place {
        let mut taking = pin!(self.take(is_privileged));
        let mut permit = poll_once(taking.as_mut()).await;
        while permit.is_none() {
            let next_look = self.make_room();
            select! {
                taken = taking.as_mut() => permit = Some(taken),
                () = sleep_until(next_look) => {}
            }
        }
        Place {
            admission: Arc::clone(self),
            is_privileged,
            _permit: permit.flatten(),
        }
    }

    /// `None` only if the places were closed, which they are not.
    async fn take(&self, is_privileged: bool) -> Option<OwnedSemaphorePermit> {
        let for_all = Arc::clone(&self.for_all).acquire_owned();
        if !is_privileged {
            return for_all.await.ok();
        }
        select! {
            biased;
            permit = for_all => permit.ok(),
            permit = Arc::clone(&self.reserved).acquire_owned() => permit.ok(),
        }
    }

    /// Tells a peer to leave, if there is one that was waited for long enough, and returns when to
    /// look again.
    fn make_room(&self) -> Instant {
        let now = Instant::now();
        let mut waiting = self.waiting();
        let peers = waiting.peers.iter().enumerate();
        let old: Vec<usize> = peers
            .filter(|(_, peer)| now.duration_since(peer.since) >= self.grace)
            .map(|(index, _)| index)
            .collect();
        if let Some(index) = any_of(&old) {
            // One that is gone by itself hears nothing.
            let _ = waiting.peers.swap_remove(index).leave.send(());
            return now + self.grace;
        }
        let first = waiting.peers.iter().map(|peer| peer.since).min();
        first.unwrap_or(now) + self.grace
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waited_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them, at random.
fn any_of(indices: &[usize]) -> Option<usize> {
    // A fresh RandomState has random keys: enough to be unforeseen, and no dependency.
    let random = RandomState::new().build_hasher().finish();
    let count = u64::try_from(indices.len()).ok()?;
    let chosen = random.checked_rem(count)?;
    indices.get(usize::try_from(chosen).ok()?).copied()
}

/// What is ready now, if it is.
async fn poll_once<T>(mut work: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A place. `Drop` gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    is_privileged: bool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Waits for something that the peer has to do. `None` if it must leave for another one before
    /// that; one that is privileged never must. What can be done without the peer is done first,
    /// and is not counted as waiting.
    pub(crate) async fn wait_for<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        if let Some(value) = poll_once(work.as_mut()).await {
            return Some(value);
        }
        if self.is_privileged {
            return Some(work.await);
        }
        let (mut must_leave, _entry) = Entry::new(&self.admission);
        select! {
            // What the peer has sent in time counts, however late it is looked at.
            biased;
            value = work => Some(value),
            _ = &mut must_leave => None,
        }
    }
}

/// A peer in the list. `Drop` takes it off.
struct Entry<'a> {
    admission: &'a Admission,
    id: u64,
}

impl<'a> Entry<'a> {
    fn new(admission: &'a Admission) -> (oneshot::Receiver<()>, Self) {
        let (leave, must_leave) = oneshot::channel();
        let mut waiting = admission.waiting();
        let id = waiting.next_id;
        waiting.next_id += 1;
        waiting.peers.push(Peer {
            id,
            since: Instant::now(),
            leave,
        });
        (must_leave, Self { admission, id })
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut waiting = self.admission.waiting();
        let found = waiting.peers.iter().position(|peer| peer.id == self.id);
        if let Some(index) = found {
            waiting.peers.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    const LONG: Duration = Duration::from_secs(60);

    /// Peers that say nothing, in all places of `admission` that are for all.
    async fn crowd(admission: &Arc<Admission>, count: usize) -> JoinSet<Option<()>> {
        let mut crowd = JoinSet::new();
        for _ in 0..count {
            let place = admission.enter(false).await;
            crowd.spawn(async move { place.wait_for(pending()).await });
        }
        crowd
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_leaves_only_for_another_and_not_at_once() {
        let admission = Admission::new(2, 0, GRACE);
        let mut crowd = crowd(&admission, 2).await;
        timeout(LONG, crowd.join_next()).await.unwrap_err();
        let start = Instant::now();
        let place = admission.enter(false).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "both are old");
        assert_eq!(crowd.join_next().await.unwrap().unwrap(), None);
        assert_eq!(crowd.len(), 1);
        drop(place);
    }

    #[tokio::test(start_paused = true)]
    async fn young_ones_are_given_time() {
        let admission = Admission::new(4, 0, GRACE);
        let _crowd = crowd(&admission, 4).await;
        let start = Instant::now();
        admission.enter(false).await;
        assert!(start.elapsed() >= GRACE, "{:?}", start.elapsed());
        assert!(start.elapsed() < 2 * GRACE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_has_done_counts_although_it_should_leave() {
        let admission = Admission::new(1, 0, GRACE);
        let place = admission.enter(false).await;
        let (done, is_done) = oneshot::channel();
        let waiting = place.wait_for(is_done);
        let mut waiting = pin!(waiting);
        assert!(poll_once(waiting.as_mut()).await.is_none());
        tokio::time::advance(GRACE).await;
        admission.make_room();
        done.send(7).unwrap();
        assert_eq!(waiting.await, Some(Ok(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn privileged_peers_have_places_of_their_own_and_keep_them() {
        let admission = Admission::new(1, 1, GRACE);
        let _crowd = crowd(&admission, 1).await;
        let start = Instant::now();
        let privileged = admission.enter(true).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let waiting = timeout(LONG, privileged.wait_for(pending::<()>()));
        let pressing = async {
            for _ in 0..100 {
                admission.enter(false).await;
            }
        };
        let (waited, ()) = tokio::join!(waiting, pressing);
        waited.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_comes_back_with_its_owner() {
        let admission = Admission::new(1, 0, GRACE);
        for _ in 0..3 {
            let place = admission.enter(false).await;
            assert_eq!(place.wait_for(async { 7 }).await, Some(7));
        }
        assert!(admission.waiting().peers.is_empty());
    }
}
