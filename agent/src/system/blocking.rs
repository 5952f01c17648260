//! A thread pool for blocking work. Tokio's own panics if no thread can be created (`RLIMIT_NPROC`), and its
//! runtime waits for the threads at shutdown.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};

use crate::system::memory;

/// Maximum number of threads. Further jobs are queued.
const MAX_THREADS: usize = 64;

/// Time until an idle thread ends.
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

/// Runs `work` in the pool and returns its result. Dropping the future does not cancel `work`.
///
/// # Errors
///
/// `WouldBlock` when no thread can be created, `Other` when `work` panics.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let runtime = Handle::current();
    POOL.start(Box::new(move || {
        // The work may register descriptors with the runtime.
        let _entered = runtime.enter();
        // The receiver may have been dropped.
        let _ = sender.send(work());
    }))?;
    receiver
        .await
        .map_err(|_| io::Error::other("the blocking work panicked"))
}

struct Pool {
    state: Mutex<State>,
    has_work: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
}

impl Pool {
    fn start(&'static self, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        if state.idle <= state.jobs.len() && state.threads < MAX_THREADS {
            let thread = thread::Builder::new().name("blocking".to_owned());
            thread.spawn(|| self.work())?;
            state.threads += 1;
        }
        state.jobs.push_back(job);
        self.has_work.notify_one();
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // The panic hook logs a panic, and the receiver gets an error.
            let _ = catch_unwind(AssertUnwindSafe(job));
            memory::used();
        }
    }

    /// Waits for a job. `None` after [`KEEP_ALIVE`]; the thread ends then.
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
    async fn hanging_work_does_not_delay_other_work() {
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
    async fn work_that_panics_is_an_error_and_the_pool_still_works() {
        run_blocking(|| panic!("as the test wants"))
            .await
            .unwrap_err();
        assert_eq!(run_blocking(|| 7).await.unwrap(), 7);
    }
}
