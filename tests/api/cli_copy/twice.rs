//! Two copies to one target at once: none fails, and the last that ends has its file there, whole.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Output},
    time::{Duration, SystemTime},
};

use super::{
    MIB, content, finish,
    gate::{Direction, Gate},
    part_of, spawn,
};
use crate::cli_files::{Ends, names};

const SIZE: u64 = 12 * MIB;

struct Rivals {
    ends: Ends,
    contents: [Vec<u8>; 2],
    sources: [PathBuf; 2],
    target: PathBuf,
    place: PathBuf,
}

impl Rivals {
    fn new() -> Self {
        let ends = Ends::start();
        let contents = [5, 6].map(|seed| content(seed, SIZE));
        let sources =
            [0, 1].map(|rival: usize| ends.write(format!("source-{rival}"), &contents[rival]));
        // Else they would look the same.
        let file = fs::File::open(&sources[0]).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
            .unwrap();
        let place = ends.mkdir("place");
        Self {
            target: place.join("target"),
            contents,
            sources,
            place,
            ends,
        }
    }

    fn copy(
        &self,
        direction: Direction,
        rival: usize,
        gate: Option<&Gate>,
        flags: &[&str],
    ) -> Child {
        let endpoint = gate.map_or_else(|| self.ends.agent.endpoint(), Gate::endpoint);
        let (source, target) = (self.sources[rival].display(), self.target.display());
        let (verb, from, to) = match direction {
            Direction::In => ("push", source.to_string(), format!("{endpoint}:{target}")),
            Direction::Out => ("pull", format!("{endpoint}:{source}"), target.to_string()),
        };
        spawn(
            self.ends
                .cli([&[verb, "--no-fsync"], flags, &[&from, &to]].concat()),
        )
    }

    /// Both were done, the file is one of the two, and nothing else is there.
    fn check(&self, outputs: &[Output; 2]) -> usize {
        for output in outputs {
            assert!(output.status.success(), "{output:?}");
        }
        assert_eq!(names(&self.place), ["target"]);
        let target = fs::read(&self.target).unwrap();
        let winner = self.contents.iter().position(|content| *content == target);
        winner.expect("one of the two")
    }
}

async fn at_once(direction: Direction) {
    let rivals = Rivals::new();
    for round in 0..8 {
        let flags: &[&str] = if round % 2 == 0 { &[] } else { &["--resume"] };
        let copies = [0, 1].map(|rival| rivals.copy(direction, rival, None, flags));
        let [one, two] = copies.map(finish);
        rivals.check(&[one.await, two.await]);
    }
}

#[tokio::test]
async fn two_pushes_at_once() {
    at_once(Direction::In).await;
}

#[tokio::test]
async fn two_pulls_at_once() {
    at_once(Direction::Out).await;
}

/// One is slow; the other one begins and ends meanwhile.
async fn overtaken(direction: Direction, flags: &[&str]) {
    let rivals = Rivals::new();
    let agent = rivals.ends.agent.socket();
    for limit in [SIZE / 3, SIZE - MIB] {
        let gate = Gate::new(rivals.ends.folder.path(), &agent, direction, limit);
        let slow = rivals.copy(direction, 0, Some(&gate), &[]);
        part_of(&rivals.place, limit - MIB).await;
        let fast = finish(rivals.copy(direction, 1, None, flags)).await;
        assert!(fast.status.success(), "{fast:?}");
        assert!(fs::read(&rivals.target).unwrap() == rivals.contents[1]);
        gate.open();
        // Who ends last wins.
        assert_eq!(rivals.check(&[finish(slow).await, fast]), 0);
    }
}

#[tokio::test]
async fn a_slow_push_is_overtaken() {
    overtaken(Direction::In, &[]).await;
}

#[tokio::test]
async fn a_slow_push_is_overtaken_by_one_that_resumes() {
    overtaken(Direction::In, &["--resume"]).await;
}

#[tokio::test]
async fn a_slow_pull_is_overtaken() {
    overtaken(Direction::Out, &[]).await;
}

#[tokio::test]
async fn a_slow_pull_is_overtaken_by_one_that_resumes() {
    overtaken(Direction::Out, &["--resume"]).await;
}
