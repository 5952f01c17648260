//! Copies that their caller drops in the middle, as `select!` and timeouts do.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use harness::{TestAgent, TestFolder};
use tokio::sync::Notify;
use vsock_agent_client::{
    Client, RemotePath, Security, Sftp,
    copy::{CopyError, CopyEvent, CopyObserver, CopyOptions, CopySummary, pull, push},
};

const SIZE: usize = 24 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Tells when some of the file was moved.
#[derive(Debug, Default)]
struct Progress {
    moved: AtomicU64,
    resumed_at: AtomicU64,
    reached: Notify,
}

impl CopyObserver for Progress {
    fn observe(&self, event: CopyEvent<'_>) {
        match event {
            CopyEvent::Started { resumed_at, .. } => {
                self.resumed_at.store(resumed_at, Ordering::Relaxed);
            }
            CopyEvent::Moved { bytes } => {
                let before = self.moved.fetch_add(bytes, Ordering::Relaxed);
                if before + bytes > u64::try_from(SIZE / 8).unwrap() {
                    self.reached.notify_one();
                }
            }
            _ => {}
        }
    }
}

struct Scene {
    _agent: TestAgent,
    folder: TestFolder,
    sftp: Sftp,
    source: PathBuf,
    content: Vec<u8>,
}

impl Scene {
    async fn new() -> Self {
        let agent = TestAgent::start();
        let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
        let folder = TestFolder::new("dropped");
        let content: Vec<u8> = (0_u32..).flat_map(u32::to_le_bytes).take(SIZE).collect();
        let source = folder.path().join("source");
        fs::write(&source, &content).unwrap();
        fs::create_dir(folder.path().join("place")).unwrap();
        Self {
            sftp: client.sftp().await.unwrap(),
            _agent: agent,
            source,
            folder,
            content,
        }
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("place")
    }

    async fn copy(
        &self,
        direction: Direction,
        options: &CopyOptions,
        observer: &Progress,
    ) -> Result<CopySummary, CopyError> {
        let target = self.place().join("target");
        match direction {
            Direction::In => {
                let sources = [self.source.clone()];
                push(
                    &self.sftp,
                    &sources,
                    &target.as_path().into(),
                    options,
                    observer,
                )
                .await
            }
            Direction::Out => {
                let sources = [RemotePath::from(self.source.as_path())];
                pull(&self.sftp, &sources, &target, options, observer).await
            }
        }
    }

    /// Drops a copy when some of it was moved.
    async fn drop_on_the_way(&self, direction: Direction, options: &CopyOptions) {
        let progress = Progress::default();
        tokio::select! {
            copied = self.copy(direction, options, &progress) => panic!("{copied:?}"),
            () = progress.reached.notified() => {}
        }
        self.sftp.removed().await;
    }
}

fn options(resume: bool) -> CopyOptions {
    let mut options = CopyOptions::default();
    options.resume = resume;
    options
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[tokio::test]
async fn dropped_copy_removes_its_part() {
    let scene = Scene::new().await;
    for direction in [Direction::In, Direction::Out] {
        scene.drop_on_the_way(direction, &options(false)).await;
        assert_eq!(count(&scene.place()), 0, "{direction:?}");
    }
}

#[tokio::test]
async fn dropped_copy_with_resume_keeps_its_part() {
    for direction in [Direction::In, Direction::Out] {
        let scene = Scene::new().await;
        scene.drop_on_the_way(direction, &options(true)).await;
        assert_eq!(count(&scene.place()), 1, "{direction:?}");
        let progress = Progress::default();
        scene
            .copy(direction, &options(true), &progress)
            .await
            .unwrap();
        let resumed_at = progress.resumed_at.load(Ordering::Relaxed);
        assert!(resumed_at > 0, "{direction:?}");
        assert!(fs::read(scene.place().join("target")).unwrap() == scene.content);
        assert_eq!(count(&scene.place()), 1, "{direction:?}");
    }
}

#[tokio::test]
async fn copy_without_resume_removes_a_kept_part() {
    for direction in [Direction::In, Direction::Out] {
        let scene = Scene::new().await;
        for _ in 0..3 {
            scene.drop_on_the_way(direction, &options(true)).await;
            assert_eq!(count(&scene.place()), 1, "{direction:?}");
        }
        let copied = scene
            .copy(direction, &options(false), &Progress::default())
            .await;
        copied.unwrap();
        assert_eq!(count(&scene.place()), 1, "{direction:?}");
    }
}
