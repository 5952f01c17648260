//! Work in a directory of somebody else's, whose file system may never answer.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use tokio::sync::{Semaphore, oneshot};

/// Most threads at work in one directory: what is more waits in turn. One call takes microseconds, or
/// for ever.
const MAX_THREADS: usize = 4;

/// The directories that something is done in.
static DIRECTORIES: Mutex<BTreeMap<PathBuf, Weak<Semaphore>>> = Mutex::new(BTreeMap::new());

/// Does work that blocks in the directory of `path`, on a thread that the runtime does not wait for at
/// its end. The work goes on if this is dropped.
///
/// # Errors
///
/// Those of the work; and when there is no thread to be had, or the work panics.
pub async fn apart<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let turns = turns(path.parent().unwrap_or(path));
    let turn = turns.acquire_owned().await.map_err(io::Error::other)?;
    let (answer, due) = oneshot::channel();
    let thread = thread::Builder::new().name("directory".to_owned());
    thread.spawn(move || {
        // Whoever waits for it may be gone. What it has made is dropped here then.
        let _ = answer.send(work());
        drop(turn);
    })?;
    due.await
        .unwrap_or_else(|_| Err(io::Error::other("the work failed")))
}

fn turns(directory: &Path) -> Arc<Semaphore> {
    let mut directories = DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(turns) = directories.get(directory).and_then(Weak::upgrade) {
        return turns;
    }
    directories.retain(|_, turns| turns.strong_count() > 0);
    let turns = Arc::new(Semaphore::new(MAX_THREADS));
    directories.insert(directory.to_owned(), Arc::downgrade(&turns));
    turns
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_directory_that_hangs_has_few_threads_and_others_their_own() {
        let (start, started) = mpsc::channel();
        let mut ends = Vec::new();
        let hanging = (0..10).map(|_| {
            let (end, ended) = mpsc::channel::<()>();
            ends.push(end);
            let start = start.clone();
            apart(Path::new("/hanging/a"), move || {
                let _ = start.send(());
                let _ = ended.recv();
                Ok(())
            })
        });
        let hanging: Vec<_> = hanging.collect();
        for one in hanging {
            timeout(Duration::from_millis(1), one).await.unwrap_err();
        }
        assert_eq!(apart(Path::new("/other/a"), || Ok(7)).await.unwrap(), 7);
        for _ in 0..MAX_THREADS {
            started.recv().unwrap();
        }
        drop(ends);
        apart(Path::new("/hanging/b"), || Ok(())).await.unwrap();
        started.try_recv().unwrap_err();
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        apart::<()>(Path::new("/x/a"), || panic!("as the test wants"))
            .await
            .unwrap_err();
    }
}
