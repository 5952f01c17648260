//! Limits the connections of peers that are not authenticated yet.
//!
//! Every peer can connect and send nothing, and must not keep others out that way. When no slot is
//! free, a peer that has used up its grace period loses its slot to the next one. Which one is chosen
//! at random, so that a slow client has a chance under any load (as with OpenSSH's `MaxStartups`).

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

/// Numbers of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Slots for all peers.
    pub slots: usize,
    /// Additional slots for privileged peers.
    pub reserved: usize,
    /// Most peers that wait for a slot. If there are more, one of them is refused, at random.
    pub queue: usize,
}

impl Limits {
    /// For connections without a verified certificate, some 40 kB each. Every user of the peer can open
    /// them; only its root has privileged ports.
    pub const UNVERIFIED: Self = Self {
        slots: 512,
        reserved: 16,
        queue: 1024,
    };
}

/// Time until the next check if no peer is within its grace period.
const PAUSE: Duration = Duration::from_millis(50);

/// The slots, and the peers that hold one or wait for one.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    for_all: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    /// Held by the peer that is next to get a slot: without and with privileges.
    first: [Mutex<()>; 2],
    queued: Peers,
    /// Peers in [`Slot::wait_for`], which may be evicted.
    waited_for: Peers,
}

/// Peers that can be evicted. Never locked across an `.await`.
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
    /// End of its grace period.
    until: Instant,
    /// `None` after it was used.
    evict: Option<oneshot::Sender<()>>,
}

impl Admission {
    /// Creates one with all slots free.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            for_all: Arc::new(Semaphore::new(limits.slots)),
            reserved: Arc::new(Semaphore::new(limits.reserved)),
            first: Default::default(),
            queued: Peers::default(),
            waited_for: Peers::default(),
        })
    }

    /// Waits for a slot, in the order of the calls. `None` if too many peers wait.
    pub async fn enter(self: &Arc<Self>, is_privileged: bool) -> Option<Slot> {
        let mut permit = poll_once(pin!(self.take(is_privileged))).await.flatten();
        if permit.is_none() {
            let (mut evicted, _entry) = self.queued.add(Instant::now());
            self.shorten_queue();
            permit = select! {
                permit = self.take_in_turn(is_privileged) => permit,
                _ = &mut evicted, if !is_privileged => None,
            };
        }
        Some(Slot {
            admission: Arc::clone(self),
            is_privileged,
            _permit: permit?,
        })
    }

    async fn take_in_turn(&self, is_privileged: bool) -> Option<OwnedSemaphorePermit> {
        let _first = self.first[usize::from(is_privileged)].lock().await;
        let mut taking = pin!(self.take(is_privileged));
        loop {
            let next_check = self.free_slots();
            select! {
                permit = taking.as_mut() => return permit,
                () = sleep_until(next_check) => {}
            }
        }
    }

    /// `None` only if the semaphores are closed, which never happens.
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
        let too_many = queued.remaining().count().saturating_sub(self.limits.queue);
        queued.evict(too_many);
    }

    /// Evicts one peer for each that waits for a slot, of those whose grace period is over. Returns the
    /// time of the next check.
    fn free_slots(&self) -> Instant {
        let waiting = self.queued.list().remaining().count();
        let mut list = self.waited_for.list();
        let evicted = list.peers.len() - list.remaining().count();
        let soon_free = self.for_all.available_permits() + evicted;
        list.evict(waiting.saturating_sub(soon_free));
        let now = Instant::now();
        let times = list.remaining().map(|peer| peer.until);
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

    /// Adds a peer. The receiver ends when it is evicted.
    fn add(&self, until: Instant) -> (oneshot::Receiver<()>, Entry<'_>) {
        let (evict, evicted) = oneshot::channel();
        let mut list = self.list();
        let id = list.next_id;
        list.next_id += 1;
        list.peers.push(Peer {
            id,
            until,
            evict: Some(evict),
        });
        (evicted, Entry { peers: self, id })
    }
}

impl List {
    /// Peers that are not evicted.
    fn remaining(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.evict.is_some())
    }

    /// Evicts up to `count` peers whose grace period is over, at random.
    fn evict(&mut self, count: usize) {
        let now = Instant::now();
        let is_old = |peer: &&mut Peer| peer.evict.is_some() && peer.until <= now;
        let mut old: Vec<_> = self.peers.iter_mut().filter(is_old).collect();
        for _ in 0..count {
            let Some(index) = random_index(old.len()) else {
                return;
            };
            // Fails if the peer is gone already.
            let _ = old
                .swap_remove(index)
                .evict
                .take()
                .map(|evict| evict.send(()));
        }
    }
}

/// A random number below `count`. `None` if that is 0.
fn random_index(count: usize) -> Option<usize> {
    // A new RandomState has random keys: unpredictable enough, and no dependency.
    let random = RandomState::new().build_hasher().finish();
    let chosen = random.checked_rem(u64::try_from(count).ok()?)?;
    usize::try_from(chosen).ok()
}

/// Polls once. `None` if it is pending.
async fn poll_once<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// A slot for one connection. `Drop` frees it.
#[derive(Debug)]
pub struct Slot {
    admission: Arc<Admission>,
    is_privileged: bool,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Waits for something that the peer has to do. `None` if the peer is evicted, which never happens
    /// within `grace` or to a privileged peer. `work` is polled once first: if it is ready, the peer was
    /// not waited for.
    pub async fn wait_for<T>(&self, grace: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        if let Some(value) = poll_once(work.as_mut()).await {
            return Some(value);
        }
        if self.is_privileged {
            return Some(work.await);
        }
        let (mut evicted, _entry) = self.admission.waited_for.add(Instant::now() + grace);
        select! {
            // Data that came in time count even if they are read late.
            biased;
            value = work => Some(value),
            _ = &mut evicted => None,
        }
    }
}

/// A peer in a list. `Drop` removes it.
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

    fn admission(slots: usize, reserved: usize) -> Arc<Admission> {
        Admission::new(Limits {
            slots,
            reserved,
            queue: 100,
        })
    }

    /// Silent peers in `count` slots.
    async fn flood(admission: &Arc<Admission>, count: usize) -> JoinSet<Option<()>> {
        let mut flood = JoinSet::new();
        for _ in 0..count {
            let slot = admission.enter(false).await.unwrap();
            flood.spawn(async move { slot.wait_for(GRACE, pending()).await });
        }
        flood
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_evicted_only_for_another_one() {
        let admission = admission(2, 0);
        let mut flood = flood(&admission, 2).await;
        timeout(LONG, flood.join_next()).await.unwrap_err();
        let start = Instant::now();
        let slot = admission.enter(false).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO, "both are old");
        assert_eq!(flood.join_next().await.unwrap().unwrap(), None);
        assert_eq!(flood.len(), 1);
        drop(slot);
    }

    #[tokio::test(start_paused = true)]
    async fn no_peer_is_evicted_within_its_grace_period() {
        let admission = admission(4, 0);
        let _crowd = flood(&admission, 4).await;
        let start = Instant::now();
        admission.enter(false).await.unwrap();
        assert!(start.elapsed() >= GRACE, "{:?}", start.elapsed());
        assert!(start.elapsed() < 2 * GRACE, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn all_slots_can_change_hands_in_one_grace_period() {
        let admission = admission(10, 0);
        let flood = flood(&admission, 10).await;
        let start = Instant::now();
        let mut more = JoinSet::new();
        for _ in 0..100 {
            let admission = Arc::clone(&admission);
            more.spawn(async move {
                let slot = admission.enter(false).await.unwrap();
                slot.wait_for(GRACE, pending::<()>()).await
            });
        }
        let slot = admission.enter(false).await;
        assert!(slot.is_some());
        assert!(start.elapsed() < 12 * GRACE, "{:?}", start.elapsed());
        drop((flood, more));
    }

    #[tokio::test(start_paused = true)]
    async fn work_done_in_time_counts_even_if_the_peer_is_evicted() {
        let admission = admission(1, 0);
        let slot = admission.enter(false).await.unwrap();
        let (done, is_done) = oneshot::channel();
        let waiting = slot.wait_for(GRACE, is_done);
        let mut waiting = pin!(waiting);
        assert!(poll_once(waiting.as_mut()).await.is_none());
        tokio::time::advance(GRACE).await;
        admission.waited_for.list().evict(1);
        done.send(7).unwrap();
        assert_eq!(waiting.await, Some(Ok(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn privileged_peers_have_reserved_slots_and_are_not_evicted() {
        let admission = admission(1, 1);
        let _crowd = flood(&admission, 1).await;
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
    async fn waiting_peers_beyond_the_queue_are_refused() {
        let admission = admission(1, 0);
        let _slot = admission.enter(false).await.unwrap();
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
    async fn a_dropped_slot_is_free_again() {
        let admission = admission(1, 0);
        for _ in 0..3 {
            let slot = admission.enter(false).await.unwrap();
            assert_eq!(slot.wait_for(GRACE, async { 7 }).await, Some(7));
        }
        assert!(admission.waited_for.list().peers.is_empty());
        assert!(admission.queued.list().peers.is_empty());
    }
}
