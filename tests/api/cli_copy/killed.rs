//! `kill -9` of the client, and of the agent, at every tenth of a copy: the old file is as it was,
//! `--resume` sends the rest, and nothing is left.

use std::{fs, path::PathBuf, process::Child};

use harness::{AgentProcess, eventually};
use tokio::sync::OnceCell;

use super::{
    MIB, PATIENCE, content, finish,
    gate::{Direction, Gate},
    part_of, resumed_at, spawn,
};
use crate::cli_files::{Ends, OURS, build, names, stderr};

const SIZE: u64 = 20 * MIB;

/// What is not in the file yet when the gate holds: what is on its way, and heads of requests.
const ON_ITS_WAY: u64 = MIB;

/// Most of what is there that is copied again: a piece that is compared, and what a killed program
/// had not written in order.
const AGAIN: u64 = 7 * MIB;

/// Most bytes beside those of the file.
const WORDS: u64 = MIB;

/// A file that is sent in more than one request.
const SMALL: u64 = 300_000;

/// What the last requests or replies have, in bytes: more than all that follows the data.
const LAST_BYTES: u64 = 700;
const STEP: usize = 35;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    Agent,
}

struct Scene {
    ends: Ends,
    agent: AgentProcess,
    direction: Direction,
    victim: Victim,
    content: Vec<u8>,
    source: PathBuf,
    place: PathBuf,
}

impl Scene {
    async fn new(direction: Direction, victim: Victim, name: &str, size: u64) -> Self {
        static AGENT: OnceCell<PathBuf> = OnceCell::const_new();
        let program = AGENT
            .get_or_init(async || build("vsock-agent", "vsock-agent"))
            .await;
        let ends = Ends::start();
        let content = content(1, size);
        Self {
            agent: AgentProcess::start_program(program, name, |_| vec!["--plain".to_owned()]).await,
            direction,
            victim,
            source: ends.write("source", &content),
            place: ends.mkdir("place"),
            content,
            ends,
        }
    }

    fn target(&self) -> PathBuf {
        self.place.join("target")
    }

    fn gate(&self, limit: u64) -> Gate {
        let folder = self.ends.folder.path();
        Gate::new(folder, &self.agent.socket(), self.direction, limit)
    }

    fn copy(&self, gate: &Gate, flags: &[&str]) -> Child {
        let (source, target) = (self.source.display(), self.target());
        let target = target.display();
        let (verb, from, to) = match self.direction {
            Direction::In => (
                "push",
                source.to_string(),
                format!("{}:{target}", gate.endpoint()),
            ),
            Direction::Out => (
                "pull",
                format!("{}:{source}", gate.endpoint()),
                target.to_string(),
            ),
        };
        let words = [&[verb, "--json", "--no-fsync"], flags, &[&from, &to]].concat();
        spawn(self.ends.cli(words))
    }

    /// Kills one end after so many tenths; the old file stays.
    async fn kill_after(&mut self, tenths: u64) {
        fs::write(self.target(), "old").unwrap();
        let bytes = SIZE / 10 * tenths;
        let gate = self.gate(bytes);
        let client = self.copy(&gate, &[]);
        part_of(&self.place, bytes - ON_ITS_WAY).await;
        self.kill(client, &gate).await;
        assert_eq!(fs::read(self.target()).unwrap(), b"old", "{tenths} tenths");
        assert_eq!(names(&self.place).len(), 2, "{:?}", names(&self.place));
    }

    async fn kill(&mut self, mut client: Child, gate: &Gate) {
        match self.victim {
            Victim::Client => {
                client.kill().unwrap();
                gate.cut();
                client.wait().unwrap();
            }
            Victim::Agent => {
                self.agent.kill();
                gate.cut();
                let output = finish(client).await;
                assert_eq!(output.status.code(), Some(OURS), "{}", stderr(&output));
                assert!(
                    stderr(&output).contains("connection"),
                    "{}",
                    stderr(&output)
                );
                self.agent.restart().await;
            }
        }
    }

    /// Copies to the end. Returns where that was continued.
    async fn copy_again(&self, flags: &[&str]) -> u64 {
        let gate = self.gate(u64::MAX);
        let output = finish(self.copy(&gate, flags)).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(fs::read(self.target()).unwrap() == self.content);
        assert_eq!(names(&self.place), ["target"]);
        let start = resumed_at(&output);
        let sent = gate.passed();
        let size = u64::try_from(self.content.len()).unwrap();
        assert!(sent <= size - start + WORDS, "{sent} bytes from {start}");
        start
    }
}

async fn every_tenth(direction: Direction, victim: Victim, name: &str) {
    let mut scene = Scene::new(direction, victim, name, SIZE).await;
    for tenths in 1..10 {
        scene.kill_after(tenths).await;
        let start = scene.copy_again(&["--resume"]).await;
        let there = SIZE / 10 * tenths;
        assert!(start + AGAIN >= there, "{tenths} tenths: from {start}");
    }
    for tenths in [2, 5, 8] {
        scene.kill_after(tenths).await;
        assert_eq!(scene.copy_again(&[]).await, 0);
    }
}

/// Kills one end within the last requests: between the last byte and the name.
async fn at_the_end(direction: Direction, victim: Victim, name: &str) {
    let mut scene = Scene::new(direction, victim, name, SMALL).await;
    let whole = scene.gate(u64::MAX);
    let output = finish(scene.copy(&whole, &[])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let all = whole.passed();
    drop(whole);
    for missing in (1..LAST_BYTES).step_by(STEP) {
        fs::write(scene.target(), "old").unwrap();
        let gate = scene.gate(all - missing);
        let client = scene.copy(&gate, &[]);
        let held = async || gate.passed() == all - missing;
        assert!(
            eventually(PATIENCE, held).await,
            "{missing}: {}",
            gate.passed()
        );
        scene.kill(client, &gate).await;
        let target = fs::read(scene.target()).unwrap();
        assert!(target == b"old" || target == scene.content, "{missing}");
        scene.copy_again(&[]).await;
    }
}

#[tokio::test]
async fn push_killed_at_its_end() {
    at_the_end(Direction::In, Victim::Client, "ended-push-client").await;
    at_the_end(Direction::In, Victim::Agent, "ended-push-agent").await;
}

#[tokio::test]
async fn pull_killed_at_its_end() {
    at_the_end(Direction::Out, Victim::Client, "ended-pull-client").await;
    at_the_end(Direction::Out, Victim::Agent, "ended-pull-agent").await;
}

#[tokio::test]
async fn push_with_killed_client() {
    every_tenth(Direction::In, Victim::Client, "killed-push-client").await;
}

#[tokio::test]
async fn push_with_killed_agent() {
    every_tenth(Direction::In, Victim::Agent, "killed-push-agent").await;
}

#[tokio::test]
async fn pull_with_killed_client() {
    every_tenth(Direction::Out, Victim::Client, "killed-pull-client").await;
}

#[tokio::test]
async fn pull_with_killed_agent() {
    every_tenth(Direction::Out, Victim::Agent, "killed-pull-agent").await;
}
