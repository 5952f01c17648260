//! Threads for local files. To wake a thread costs as much as several system calls, so a busy thread
//! takes the next job too: another one is woken only for a queue.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use tokio::sync::oneshot;

use super::CopyError;

/// Number of threads. More would wait for the same disk.
const THREADS: usize = 4;

/// Jobs that may wait for each thread that works before another one is woken.
const QUEUED_EACH: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. Dropping this waits until each has done the job that it is at, which may have a file
/// to remove; jobs that have not started are dropped.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::default(),
        }
    }

    /// Runs short work; it may wait a little for other short work.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CopyError> {
        self.start(work, QUEUED_EACH)?.await.map_err(|_| panicked())
    }

    /// Runs work that may take long: moving data, waiting for a disk.
    pub(super) fn run_long<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, CopyError>> + use<T, W> {
        let started = self.start(work, 0);
        async move { started?.await.map_err(|_| panicked()) }
    }

    fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        queued_each: usize,
    ) -> Result<oneshot::Receiver<T>, CopyError> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            // The caller may have been dropped.
            let _ = sender.send(work());
        });
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        let busy = queue.threads.len() - queue.idle;
        if queue.jobs.len() > busy * queued_each {
            match queue.idle {
                0 if queue.threads.len() < THREADS => {
                    let shared = Arc::clone(&self.shared);
                    let thread = thread::Builder::new()
                        .name("copy".to_owned())
                        .spawn(move || shared.work())
                        .map_err(|source| CopyError::local("start a thread", source))?;
                    queue.threads.push(thread);
                }
                0 => {}
                _ => self.shared.wake.notify_one(),
            }
        }
        Ok(receiver)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (jobs, threads) = {
            let mut queue = self.shared.lock();
            queue.closed = true;
            (mem::take(&mut queue.jobs), mem::take(&mut queue.threads))
        };
        self.shared.wake.notify_all();
        drop(jobs);
        for thread in threads {
            // Jobs that panic were caught.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                // The thread must live on; the caller gets an error.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
                queue = self.lock();
            } else if queue.closed {
                return;
            } else {
                queue.idle += 1;
                queue = self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

fn panicked() -> CopyError {
    CopyError::local(
        "work with local files",
        io::Error::other("a thread panicked"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn short_work_is_done_also_behind_work_that_waits() {
        let pool = Pool::new();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let long = pool.run_long(move || gone.recv());
        assert_eq!(pool.run_long(|| 7).await.unwrap(), 7);
        drop(go);
        long.await.unwrap().unwrap_err();
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_and_the_next_is_done() {
        let pool = Pool::new();
        pool.run(|| panic!("on purpose")).await.unwrap_err();
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }
}
