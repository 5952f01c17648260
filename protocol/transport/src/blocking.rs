//! Blocking calls in a directory of another user, whose file system may never answer.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use tokio::sync::{Semaphore, oneshot};

/// Most threads per directory; more calls wait in turn. One call takes microseconds, or for ever.
const MAX_THREADS: usize = 4;

/// The directories with running calls, and the permits of each.
static DIRECTORIES: Mutex<BTreeMap<PathBuf, Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

/// Runs `work`, which blocks in the directory of `path`, on a thread of its own. Unlike
/// [`tokio::task::spawn_blocking`], the runtime does not wait for the thread when it shuts down. Dropping
/// the future does not cancel `work`.
///
/// # Errors
///
/// The errors of `work`, those of `pthread_create(3)`, and an error of the kind `Other` if `work`
/// panics.
pub async fn run_blocking_on<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permits = permits(path.parent().unwrap_or(path));
    let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name("directory".to_owned());
    thread.spawn(move || {
        // Fails if the caller is gone. The result is dropped here then.
        let _ = sender.send(work());
        drop(permit);
    })?;
    receiver
        .await
        .unwrap_or_else(|_| Err(io::Error::other("the blocking call panicked")))
}

fn permits(directory: &Path) -> Arc<Semaphore> {
    let mut directories = DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(permits) = directories.get(directory).and_then(Weak::upgrade) {
        return permits;
    }
    directories.retain(|_, permits| permits.strong_count() > 0);
    let permits = Arc::new(Semaphore::new(MAX_THREADS));
    directories.insert(directory.to_owned(), Arc::downgrade(&permits));
    permits
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_hanging_directory_has_few_threads_and_does_not_block_others() {
        let (start, started) = mpsc::channel();
        let mut ends = Vec::new();
        let hanging = (0..10).map(|_| {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let start = start.clone();
            run_blocking_on(Path::new("/hanging/a"), move || {
                let _ = start.send(());
                let _ = ended.recv();
                Ok(())
            })
        });
        let hanging: Vec<_> = hanging.collect();
        for one in hanging {
            timeout(Duration::from_millis(1), one).await.unwrap_err();
        }
        assert_eq!(
            run_blocking_on(Path::new("/other/a"), || Ok(7))
                .await
                .unwrap(),
            7
        );
        for _ in 0..MAX_THREADS {
            started.recv().unwrap();
        }
        drop(ends);
        run_blocking_on(Path::new("/hanging/b"), || Ok(()))
            .await
            .unwrap();
        started.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn a_panic_in_the_blocking_call_is_an_error() {
        run_blocking_on::<()>(Path::new("/x/a"), || panic!("expected by the test"))
            .await
            .unwrap_err();
    }
}
