//! Copies that break off at every tenth: the old file or the new one, never half of one, and the
//! next copy cleans up or goes on.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use harness::{TestAgent, TestFolder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use vsock_agent_client::{
    Client, RemotePath, Security, Sftp,
    copy::{CopyEvent, CopyObserver, CopyOptions, pull, push},
};

const SIZE: usize = 20 * 1024 * 1024;

/// A way to the agent that breaks, for both of its ends, after `limit` bytes in one direction.
struct BreakingWay {
    socket: PathBuf,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

impl BreakingWay {
    fn new(agent: &TestAgent, folder: &Path, direction: Direction, limit: u64) -> Self {
        let socket = folder.join(format!("way-{limit}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let to = agent.socket();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = UnixStream::connect(to).await.unwrap();
            let (near_read, mut near_write) = near.into_split();
            let (far_read, mut far_write) = far.into_split();
            let (limit_in, limit_out) = match direction {
                Direction::In => (limit, u64::MAX),
                Direction::Out => (u64::MAX, limit),
            };
            let (mut inward, mut outward) = (near_read.take(limit_in), far_read.take(limit_out));
            tokio::select! {
                _ = copy(&mut inward, &mut far_write) => {}
                _ = copy(&mut outward, &mut near_write) => {}
            }
            // What passed arrives before the end does.
            let _ = far_write.shutdown().await;
            let _ = near_write.shutdown().await;
        });
        Self {
            socket,
            _tasks: tasks,
        }
    }

    async fn session(&self) -> Sftp {
        session(&format!("unix:{}", self.socket.display())).await
    }
}

async fn session(endpoint: &str) -> Sftp {
    let client = Client::new(endpoint.parse().unwrap(), Security::Plain);
    client.sftp().await.unwrap()
}

fn content() -> Vec<u8> {
    let mut state = 1_u64;
    (0..SIZE)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_le_bytes()[7]
        })
        .collect()
}

fn resuming() -> CopyOptions {
    let mut options = CopyOptions::default();
    options.resume = true;
    options
}

/// Remembers where a file was continued.
#[derive(Debug, Default)]
struct ResumedAt(AtomicU64);

impl CopyObserver for ResumedAt {
    fn observe(&self, event: CopyEvent<'_>) {
        if let CopyEvent::Started { resumed_at, .. } = event {
            self.0.store(resumed_at, Ordering::Relaxed);
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What a broken copy is about.
struct Scene {
    agent: TestAgent,
    folder: TestFolder,
    source: PathBuf,
    target: PathBuf,
    content: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let folder = TestFolder::new("broken");
        let source = folder.path().join("source");
        let place = folder.path().join("place");
        fs::create_dir(&place).unwrap();
        let content = content();
        fs::write(&source, &content).unwrap();
        Self {
            agent: TestAgent::start(),
            target: place.join("target"),
            folder,
            source,
            content,
        }
    }

    /// Breaks off after `tenths`, with an old file there.
    async fn break_off(&self, direction: Direction, tenths: u64) {
        fs::write(&self.target, "old").unwrap();
        let limit = u64::try_from(SIZE).unwrap() / 10 * tenths;
        let way = BreakingWay::new(&self.agent, self.folder.path(), direction, limit);
        let sftp = way.session().await;
        self.copy(&sftp, direction, &CopyOptions::default(), &())
            .await
            .expect_err("it broke off");
        assert_eq!(fs::read(&self.target).unwrap(), b"old", "{tenths} tenths");
        drop(sftp);
        fs::remove_file(&way.socket).unwrap();
    }

    async fn copy(
        &self,
        sftp: &Sftp,
        direction: Direction,
        options: &CopyOptions,
        observer: &dyn CopyObserver,
    ) -> Result<(), vsock_agent_client::copy::CopyError> {
        let (source, target) = (&self.source, &self.target);
        match direction {
            Direction::In => {
                let target = RemotePath::from(target.as_path());
                push(
                    sftp,
                    std::slice::from_ref(source),
                    &target,
                    options,
                    observer,
                )
                .await?
            }
            Direction::Out => {
                let source = RemotePath::from(source.as_path());
                pull(sftp, &[source], target, options, observer).await?
            }
        };
        Ok(())
    }

    /// Copies to the end; returns where that began.
    async fn resume(&self, sftp: &Sftp, direction: Direction) -> u64 {
        let resumed = ResumedAt::default();
        self.copy(sftp, direction, &resuming(), &resumed)
            .await
            .unwrap();
        self.is_whole();
        resumed.0.load(Ordering::Relaxed)
    }

    fn is_whole(&self) {
        assert!(fs::read(&self.target).unwrap() == self.content);
        assert_eq!(names(self.target.parent().unwrap()), ["target"]);
    }
}

async fn every_tenth_is_continued(direction: Direction) {
    let scene = Scene::new();
    let sftp = session(&scene.agent.endpoint()).await;
    let mut continued = 0;
    for tenths in 1..10 {
        scene.break_off(direction, tenths).await;
        continued += u32::from(scene.resume(&sftp, direction).await > 0);
        fs::remove_file(&scene.target).unwrap();
    }
    // A part shorter than what is compared at once is written again.
    assert!(continued >= 5, "{continued} of 9 were continued");
}

async fn leftovers_go_with_the_next_copy(direction: Direction) {
    let scene = Scene::new();
    let sftp = session(&scene.agent.endpoint()).await;
    for tenths in [2, 5, 8] {
        scene.break_off(direction, tenths).await;
    }
    scene
        .copy(&sftp, direction, &CopyOptions::default(), &())
        .await
        .unwrap();
    scene.is_whole();
}

#[tokio::test]
async fn interrupted_push_resumes_from_any_byte() {
    every_tenth_is_continued(Direction::In).await;
}

#[tokio::test]
async fn interrupted_pull_resumes_from_any_byte() {
    every_tenth_is_continued(Direction::Out).await;
}

#[tokio::test]
async fn next_push_removes_leftover_parts() {
    leftovers_go_with_the_next_copy(Direction::In).await;
}

#[tokio::test]
async fn next_pull_removes_leftover_parts() {
    leftovers_go_with_the_next_copy(Direction::Out).await;
}

#[tokio::test]
async fn resume_overwrites_a_part_from_its_first_difference() {
    for direction in [Direction::In, Direction::Out] {
        let scene = Scene::new();
        let sftp = session(&scene.agent.endpoint()).await;
        let mut wrong = scene.content[..SIZE - 5].to_vec();
        wrong[6 * 1024 * 1024] ^= 1;
        let part = scene.target.with_file_name(".target.0123456789abcdef.part");
        fs::write(part, wrong).unwrap();
        assert_eq!(scene.resume(&sftp, direction).await, 4 * 1024 * 1024);
    }
}

#[tokio::test]
async fn resume_leaves_a_part_in_use_alone() {
    let scene = Scene::new();
    let sftp = session(&scene.agent.endpoint()).await;
    let name = ".target.0123456789abcdef.part";
    let live = fs::File::create(scene.target.with_file_name(name)).unwrap();
    live.lock().unwrap();
    for options in [CopyOptions::default(), resuming()] {
        scene
            .copy(&sftp, Direction::Out, &options, &())
            .await
            .unwrap();
        assert_eq!(names(scene.target.parent().unwrap()), [name, "target"]);
    }
}
