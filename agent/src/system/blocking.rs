//! A pool of threads for blocking work. Tokio's own panics if no thread can be created (`RLIMIT_NPROC`),
//! and its runtime waits for its threads at shutdown.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};

/// Most threads; more jobs are queued.
const MAX_THREADS: usize = 64;

/// How long an idle thread stays.
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

/// Runs the work, and waits for its result. The work goes on if this is dropped.
///
/// # Errors
///
/// `WouldBlock` when no thread can be created; another error when the work panics.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, due) = oneshot::channel();
    let runtime = Handle::current();
    POOL.start(Box::new(move || {
        // The work may register descriptors with it.
        let _entered = runtime.enter();
        // The receiver may have been dropped.
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
            // The job must not wait for threads that may hang.
            thread.spawn(|| self.work())?;
            state.threads += 1;
        }
        state.jobs.push_back(job);
        self.has_work.notify_one();
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            // A panic is printed by the hook, and the receiver gets an error.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// The next job, or `None` after [`KEEP_ALIVE`].
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
