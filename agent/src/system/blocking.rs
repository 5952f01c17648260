//! Work that may block, on threads of their own. Tokio's would panic where the system has no thread
//! for it (a limit of processes), and its runtime waits for them at the end.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};

/// Most threads: what is more waits in turn.
const MAX_THREADS: usize = 64;

/// How long a thread without work stays.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

static POOL: Pool = Pool {
    state: Mutex::new(State {
        jobs: VecDeque::new(),
        threads: 0,
        idle: 0,
    }),
    has_work: Condvar::new(),
};

/// Does the work, and waits for its result. The work goes on if this is dropped.
///
/// # Errors
///
/// `WouldBlock` when there is no thread to be had; and when the work panics.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, due) = oneshot::channel();
    let runtime = Handle::current();
    POOL.start(Box::new(move || {
        // The work may register descriptors with it.
        let _entered = runtime.enter();
        // Nobody may be waiting any more.
        let _ = answer.send(work());
    }))?;
    due.await.map_err(|_| io::Error::other("the work failed"))
}

struct Pool {
    state: Mutex<State>,
    has_work: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
}

impl Pool {
    fn start(&'static self, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        if state.idle <= state.jobs.len() && state.threads < MAX_THREADS {
            let thread = thread::Builder::new().name("blocking".to_owned());
            // A job is not left to threads that may never be done with theirs.
            thread.spawn(|| self.work())?;
            state.threads += 1;
        }
        state.jobs.push_back(job);
        self.has_work.notify_one();
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // What panicked has said so, and whoever waits for it hears of it.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// The next job, or `None` for a thread that has waited long enough.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle += 1;
        let waited = self
            .has_work
            .wait_timeout_while(state, KEEP_ALIVE, |state| state.jobs.is_empty());
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.idle -= 1;
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.threads -= 1;
        }
        job
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_is_done_beside_work_that_hangs() {
        let (end, ended) = mpsc::channel::<()>();
        let mut hanging = std::pin::pin!(run_blocking(move || ended.recv().is_err()));
        let quick = async {
            for number in 0..100 {
                assert_eq!(run_blocking(move || number).await.unwrap(), number);
            }
            drop(end);
        };
        let (hung, ()) = tokio::join!(hanging.as_mut(), quick);
        assert!(hung.unwrap());
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_pool_goes_on() {
        run_blocking(|| panic!("as the test wants"))
            .await
            .unwrap_err();
        assert_eq!(run_blocking(|| 7).await.unwrap(), 7);
    }
}
