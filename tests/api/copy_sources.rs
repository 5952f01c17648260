//! Sources that change while they are read, and those that the kernel makes up; and what is complete
//! already.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use harness::{TestAgent, TestFolder};
use vsock_agent_client::{
    Client, RemotePath, Security, Sftp,
    copy::{CopyError, CopyEvent, CopyObserver, CopyOptions, CopySummary, pull, pull_stream, push},
};

const SIZE: usize = 3_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Push,
    Pull,
    Stream,
}

/// Does something to the source when its copy starts; counts what was told to have changed.
struct Meddler<F> {
    meddle: F,
    changed: AtomicUsize,
}

impl<F: Fn() + Send + Sync> CopyObserver for Meddler<F> {
    fn observe(&self, event: CopyEvent<'_>) {
        match event {
            CopyEvent::Started { .. } => (self.meddle)(),
            CopyEvent::Changed { .. } => {
                self.changed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

struct Scene {
    _agent: TestAgent,
    folder: TestFolder,
    sftp: Sftp,
}

impl Scene {
    async fn new() -> Self {
        let agent = TestAgent::start();
        let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
        Self {
            sftp: client.sftp().await.unwrap(),
            _agent: agent,
            folder: TestFolder::new("sources"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn copy(
        &self,
        way: Way,
        source: &Path,
        options: &CopyOptions,
        observer: &dyn CopyObserver,
    ) -> Result<CopySummary, CopyError> {
        let (target, remote) = (self.path("target"), RemotePath::from(source));
        match way {
            Way::Push => {
                let sources = [source.to_owned()];
                push(
                    &self.sftp,
                    &sources,
                    &target.as_path().into(),
                    options,
                    observer,
                )
                .await
            }
            Way::Pull => pull(&self.sftp, &[remote], &target, options, observer).await,
            Way::Stream => {
                let mut sink = Vec::new();
                let copied = pull_stream(&self.sftp, &remote, &mut sink, options, observer).await?;
                fs::write(&target, sink).unwrap();
                Ok(copied)
            }
        }
    }
}

const ALL: [Way; 3] = [Way::Push, Way::Pull, Way::Stream];

fn content() -> Vec<u8> {
    (0_u32..).flat_map(u32::to_le_bytes).take(SIZE).collect()
}

#[tokio::test]
async fn growing_source_is_copied_at_its_initial_size_and_reported() {
    for way in ALL {
        let scene = Scene::new().await;
        let source = scene.path("log");
        fs::write(&source, content()).unwrap();
        let meddler = Meddler {
            meddle: || {
                let mut file = File::options().append(true).open(&source).unwrap();
                file.write_all(&[7; 500_000]).unwrap();
            },
            changed: AtomicUsize::new(0),
        };
        let copied = scene
            .copy(way, &source, &CopyOptions::default(), &meddler)
            .await;
        assert_eq!(copied.unwrap().files, 1, "{way:?}");
        assert!(
            fs::read(scene.path("target")).unwrap() == content(),
            "{way:?}"
        );
        assert_eq!(meddler.changed.into_inner(), 1, "{way:?}");
    }
}

#[tokio::test]
async fn shrinking_source_fails_and_keeps_the_old_target() {
    for way in ALL {
        let scene = Scene::new().await;
        let source = scene.path("log");
        fs::write(&source, content()).unwrap();
        fs::write(scene.path("target"), "old").unwrap();
        let meddler = Meddler {
            meddle: || {
                let file = File::options().write(true).open(&source).unwrap();
                file.set_len(1_000_000).unwrap();
            },
            changed: AtomicUsize::new(0),
        };
        let copied = scene
            .copy(way, &source, &CopyOptions::default(), &meddler)
            .await;
        assert!(
            matches!(copied, Err(CopyError::Changed)),
            "{way:?}: {copied:?}"
        );
        assert_eq!(fs::read(scene.path("target")).unwrap(), b"old", "{way:?}");
    }
}

#[tokio::test]
async fn procfs_files_are_read_to_their_end() {
    // It says 4096 bytes; the other one says none.
    for source in ["/sys/devices/system/cpu/online", "/proc/version"] {
        let source = Path::new(source);
        for way in ALL {
            let scene = Scene::new().await;
            let copied = scene.copy(way, source, &CopyOptions::default(), &()).await;
            assert_eq!(copied.unwrap().files, 1, "{way:?}");
            let target = fs::read(scene.path("target")).unwrap();
            assert_eq!(target, fs::read(source).unwrap(), "{way:?}");
            assert!(!target.is_empty());
        }
    }
}

#[tokio::test]
async fn procfs_tree_is_copied() {
    let scene = Scene::new().await;
    let mut options = CopyOptions::default();
    options.recursive = true;
    let source = Path::new("/sys/devices/system/cpu/smt");
    for way in [Way::Push, Way::Pull] {
        let copied = scene.copy(way, source, &options, &()).await.unwrap();
        assert_eq!(copied.failed, 0, "{way:?}");
        let target = scene.path("target");
        let copied = fs::read(target.join("active")).unwrap();
        assert_eq!(copied, fs::read(source.join("active")).unwrap());
        fs::remove_dir_all(target).unwrap();
    }
}

fn set_time(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

#[tokio::test]
async fn resume_compares_content_of_files_with_equal_size() {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let second = Duration::from_secs(1);
    let mut options = CopyOptions::default();
    options.resume = true;
    for size in [100, 300_000] {
        for way in [Way::Push, Way::Pull] {
            let scene = Scene::new().await;
            let (source, target) = (scene.path("source"), scene.path("target"));
            let is_skipped = async |mine: u8, at: SystemTime, theirs: u8, then: SystemTime| {
                fs::write(&source, vec![mine; size]).unwrap();
                set_time(&source, at);
                fs::write(&target, vec![theirs; size]).unwrap();
                set_time(&target, then);
                let copied = scene.copy(way, &source, &options, &()).await.unwrap();
                assert!(
                    fs::read(&target).unwrap() == vec![mine; size],
                    "{way:?} {size}"
                );
                assert_eq!(copied.skipped + copied.files, 1);
                copied.skipped == 1
            };
            assert!(is_skipped(1, time, 1, time).await);
            // Fractions of a second do not go over the wire.
            assert!(is_skipped(1, time + second / 2, 1, time).await);
            assert!(!is_skipped(1, time, 2, time).await);
            assert!(!is_skipped(1, time + second, 2, time).await);
            assert!(!is_skipped(1, time, 2, time + second).await);
        }
    }
}
