//! Places for peers that have not yet shown who they are.
//!
//! Anybody can connect and say nothing, so such a peer must not keep others out. A peer that has
//! been waited for long enough gives its place to the next one, if there is no other; which of them
//! goes is chosen at random, so that a client that is slow has a chance whatever the others do (as
//! with OpenSSH's `MaxStartups`).

use std::{
    future::{Future, poll_fn},
    hash::{BuildHasher, Hasher, RandomState},
    pin::{Pin, pin},
    sync::{Arc, Mutex as BlockingMutex, MutexGuard, PoisonError},
    task::Poll,
};

use tokio::{
    select,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Duration, Instant, sleep_until},
};

/// How many may come in.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Places that anybody may have.
    pub places: usize,
    /// As many more for privileged peers alone.
    pub reserved: usize,
    /// Most peers that wait for a place. When there are more, one of them is sent away, at random.
    pub queue: usize,
}

/// Time between two looks whether a peer was waited for long enough, when none was.
const PAUSE: Duration = Duration::from_millis(50);

/// Some places for all, and some more for privileged peers alone.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    for_all: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    /// Held by the peer that is the next to get a place: of the others, and of the privileged ones.
    first: [Mutex<()>; 2],
    queued: Peers,
    /// The peers that are waited for and may be told to leave.
    waited_for: Peers,
}

/// Peers that can be told to leave. Never locked across an `.await`.
#[derive(Debug, Default)]
struct Peers(BlockingMutex<List>);

#[derive(Debug, Default)]
struct List {
    next_id: u64,
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    id: u64,
    /// Until when it may stay in any case.
    until: Instant,
    /// `None` for one that was told already.
    leave: Option<oneshot::Sender<()>>,
}

impl Admission {
    /// Places, none of which is taken.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            for_all: Arc::new(Semaphore::new(limits.places)),
            reserved: Arc::new(Semaphore::new(limits.reserved)),
            first: Default::default(),
            queued: Peers::default(),
            waited_for: Peers::default(),
        })
    }

    /// Takes a place, as soon as there is one: those who ask are served in turn. `None` if too many
    /// ask.
    pub async fn enter(self: &Arc<Self>, is_privileged: bool) -> Option<Place> {
        let mut permit = poll_once(pin!(self.take(is_privileged))).await.flatten();
        if permit.is_none() {
            let (mut must_leave, _entry) = self.queued.add(Instant::now());
            self.shorten_queue();
            permit = select! {
                permit = self.take_in_turn(is_privileged) => permit,
                _ = &mut must_leave, if !is_privileged => None,
            };
        }
        Some(Place {
            admission: Arc::clone(self),
            is_privileged,
            _permit: permit?,
        })
    }

    async fn take_in_turn(&self, is_privileged: bool) -> Option<OwnedSemaphorePermit> {
        let _first = self.first[usize::from(is_privileged)].lock().await;
        let mut taking = pin!(self.take(is_privileged));
        loop {
            let next_look = self.make_room();
            select! {
                permit = taking.as_mut() => return permit,
                () = sleep_until(next_look) => {}
            }
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

    fn shorten_queue(&self) {
        let mut queued = self.queued.list();
        let too_many = queued.staying().count().saturating_sub(self.limits.queue);
        queued.send_away(too_many);
    }

    /// Tells as many peers to leave as others wait for their places, of those that were waited for
    /// long enough, and returns when to look again.
    fn make_room(&self) -> Instant {
        let wanted = self.queued.list().staying().count();
        let mut list = self.waited_for.list();
        let leaving = list.peers.len() - list.staying().count();
        let coming = self.for_all.available_permits() + leaving;
        list.send_away(wanted.saturating_sub(coming));
        let now = Instant::now();
        let times = list.staying().map(|peer| peer.until);
        times
            .filter(|until| *until > now)
            .min()
            .unwrap_or(now + PAUSE)
    }
}

impl Peers {
    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, which is told when it has to leave.
    fn add(&self, until: Instant) -> (oneshot::Receiver<()>, Entry<'_>) {
        let (leave, must_leave) = oneshot::channel();
        let mut list = self.list();
        let id = list.next_id;
        list.next_id += 1;
        list.peers.push(Peer {
            id,
            until,
            leave: Some(leave),
        });
        (must_leave, Entry { peers: self, id })
    }
}

impl List {
    /// Those that were not told to leave.
    fn staying(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.leave.is_some())
    }

    /// Tells so many to leave, of those that were waited for long enough, at random.
    fn send_away(&mut self, count: usize) {
        let now = Instant::now();
        let is_old = |peer: &&mut Peer| peer.leave.is_some() && peer.until <= now;
        let mut old: Vec<_> = self.peers.iter_mut().filter(is_old).collect();
        for _ in 0..count {
            let Some(index) = random_index(old.len()) else {
                return;
            };
            // One that is gone by itself hears nothing.
            let _ = old
                .swap_remove(index)
                .leave
                .take()
                .map(|leave| leave.send(()));
        }
    }
}

/// One of so many, at random. `None` if there are none.
fn random_index(count: usize) -> Option<usize> {
    // A fresh RandomState has random keys: enough to be unforeseen, and no dependency.
    let random = RandomState::new().build_hasher().finish();
    let chosen = random.checked_rem(u64::try_from(count).ok()?)?;
    usize::try_from(chosen).ok()
}

/// What is ready now, if it is.
async fn poll_once<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A place. `Drop` gives it back.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    is_privileged: bool,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Waits for something that the peer has to do. `None` if it must leave for another one before
    /// that, which it never must within `grace`, nor if it is privileged. What can be done without the
    /// peer is done first, and is not counted as waiting.
    pub async fn wait_for<T>(&self, grace: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        if let Some(value) = poll_once(work.as_mut()).await {
            return Some(value);
        }
        if self.is_privileged {
            return Some(work.await);
        }
        let (mut must_leave, _entry) = self.admission.waited_for.add(Instant::now() + grace);
        select! {
            // What the peer has sent in time counts, however late it is looked at.
            biased;
            value = work => Some(value),
            _ = &mut must_leave => None,
        }
    }
}

/// A peer in a list. `Drop` takes it off.
struct Entry<'a> {
    peers: &'a Peers,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.peers.list().peers.retain(|peer| peer.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    const LONG: Duration = Duration::from_secs(60);

    fn admission(places: usize, reserved: usize) -> Arc<Admission> {
        Admission::new(Limits {
            places,
            reserved,
            queue: 100,
        })
    }

    /// Peers that say nothing, in all places of `admission` that are for all.
    async fn crowd(admission: &Arc<Admission>, count: usize) -> JoinSet<Option<()>> {
        let mut crowd = JoinSet::new();
        for _ in 0..count {
            let place = admission.enter(false).await.unwrap();
            crowd.spawn(async move { place.wait_for(GRACE, pending()).await });
        }
        crowd
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_leaves_only_for_another_and_not_at_once() {
        let admission = admission(2, 0);
        let mut crowd = crowd(&admission, 2).await;
        timeout(LONG, crowd.join_next()).await.unwrap_err();
        let start = Instant::now();
        let place = admission.enter(false).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO, "both are old");
        assert_eq!(crowd.join_next().await.unwrap().unwrap(), None);
        assert_eq!(crowd.len(), 1);
        drop(place);
    }

    #[tokio::test(start_paused = true)]
    async fn young_ones_are_given_time() {
        let admission = admission(4, 0);
        let _crowd = crowd(&admission, 4).await;
        let start = Instant::now();
        admission.enter(false).await.unwrap();
        assert!(start.elapsed() >= GRACE, "{:?}", start.elapsed());
        assert!(start.elapsed() < 2 * GRACE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn in_each_time_of_grace_all_places_can_have_others() {
        let admission = admission(10, 0);
        let crowd = crowd(&admission, 10).await;
        let start = Instant::now();
        let mut more = JoinSet::new();
        for _ in 0..100 {
            let admission = Arc::clone(&admission);
            more.spawn(async move {
                let place = admission.enter(false).await.unwrap();
                place.wait_for(GRACE, pending::<()>()).await
            });
        }
        let place = admission.enter(false).await;
        assert!(place.is_some());
        assert!(start.elapsed() < 12 * GRACE, "{:?}", start.elapsed());
        drop((crowd, more));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_peer_has_done_counts_although_it_should_leave() {
        let admission = admission(1, 0);
        let place = admission.enter(false).await.unwrap();
        let (done, is_done) = oneshot::channel();
        let waiting = place.wait_for(GRACE, is_done);
        let mut waiting = pin!(waiting);
        assert!(poll_once(waiting.as_mut()).await.is_none());
        tokio::time::advance(GRACE).await;
        admission.waited_for.list().send_away(1);
        done.send(7).unwrap();
        assert_eq!(waiting.await, Some(Ok(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn privileged_peers_have_places_of_their_own_and_keep_them() {
        let admission = admission(1, 1);
        let _crowd = crowd(&admission, 1).await;
        let start = Instant::now();
        let privileged = admission.enter(true).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        let waiting = timeout(LONG, privileged.wait_for(GRACE, pending::<()>()));
        let pressing = async {
            for _ in 0..100 {
                admission.enter(false).await.unwrap();
            }
        };
        let (waited, ()) = tokio::join!(waiting, pressing);
        waited.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_that_wait_some_are_sent_away() {
        let admission = admission(1, 0);
        let _place = admission.enter(false).await.unwrap();
        let mut waiting = JoinSet::new();
        for _ in 0..110 {
            let admission = Arc::clone(&admission);
            waiting.spawn(async move { admission.enter(false).await.is_some() });
        }
        for _ in 0..10 {
            assert!(!waiting.join_next().await.unwrap().unwrap());
        }
        timeout(LONG, waiting.join_next()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_comes_back_with_its_owner() {
        let admission = admission(1, 0);
        for _ in 0..3 {
            let place = admission.enter(false).await.unwrap();
            assert_eq!(place.wait_for(GRACE, async { 7 }).await, Some(7));
        }
        assert!(admission.waited_for.list().peers.is_empty());
        assert!(admission.queued.list().peers.is_empty());
    }
}
