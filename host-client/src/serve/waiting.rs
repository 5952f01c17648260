//! Connections that have not shown whose they are. Anybody in a guest can make them, so they make
//! room for one another.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::oneshot, time::Instant};

use super::limits;

/// At most [`limits::MAX_WAITING`] connections. When there are more, one of those that have been
/// here for [`limits::GRACE`] has to leave, at random, as with OpenSSH's `MaxStartups`; if there is
/// none, the oldest. So whoever is quick is safe from those who say nothing.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    next_id: u64,
    /// The oldest first.
    all: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    since: Instant,
    leave: oneshot::Sender<()>,
}

/// One of them. It is none any more when this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    waiting: Arc<Waiting>,
    id: u64,
    leave: oneshot::Receiver<()>,
}

impl Waiting {
    pub(super) fn enter(self: &Arc<Self>) -> Entry {
        let mut connections = self.connections();
        if connections.all.len() >= limits::MAX_WAITING {
            let index = connections.choose();
            // One that is gone by itself hears nothing.
            let _ = connections.all.remove(index).leave.send(());
        }
        let id = connections.next_id;
        connections.next_id += 1;
        let (leave, told) = oneshot::channel();
        connections.all.push(Connection {
            id,
            since: Instant::now(),
            leave,
        });
        Entry {
            waiting: Arc::clone(self),
            id,
            leave: told,
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    /// Which one has to leave.
    fn choose(&self) -> usize {
        let is_old = |connection: &Connection| connection.since.elapsed() >= limits::GRACE;
        let old = self.all.partition_point(is_old);
        // A fresh RandomState has random keys: enough to be unforeseen, and no dependency.
        let random = RandomState::new().build_hasher().finish();
        let chosen = u64::try_from(old)
            .ok()
            .and_then(|old| random.checked_rem(old));
        chosen
            .and_then(|index| usize::try_from(index).ok())
            .unwrap_or(0)
    }
}

impl Entry {
    /// Waits until it has to leave.
    pub(super) async fn is_told_to_leave(&mut self) {
        // The other end is dropped only after it was used, or with our own entry.
        let _ = (&mut self.leave).await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut connections = self.waiting.connections();
        connections
            .all
            .retain(|connection| connection.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    fn has_to_leave(entry: &mut Entry) -> bool {
        entry.is_told_to_leave().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_one_makes_room_and_a_young_one_stays() {
        let waiting = Arc::<Waiting>::default();
        let mut old: Vec<_> = (0..limits::MAX_WAITING).map(|_| waiting.enter()).collect();
        advance(limits::GRACE).await;
        let mut young: Vec<_> = (1..limits::MAX_WAITING).map(|_| waiting.enter()).collect();
        assert!(!young.iter_mut().any(has_to_leave));
        let left = old
            .iter_mut()
            .filter_map(|entry| has_to_leave(entry).then_some(()));
        assert_eq!(left.count(), young.len());
        drop((old, young));
        assert!(waiting.connections().all.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_leaves_when_all_are_young() {
        let waiting = Arc::<Waiting>::default();
        let mut all: Vec<_> = (0..=limits::MAX_WAITING).map(|_| waiting.enter()).collect();
        assert!(has_to_leave(&mut all[0]));
        assert!(!all[1..].iter_mut().any(has_to_leave));
    }
}
