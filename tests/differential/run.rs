//! A sequence on both servers, and what differed.

use std::{fs, path::PathBuf};

use harness::TestFolder;

use crate::{
    allowed::{ALLOWED, After, may_end},
    op::{Argument, Handle, Kind, Op},
    outcome::Outcome,
    peer::{Peer, Server},
    tree::{Snapshot, plant, uproot},
    wire::kind,
};

/// Bytes of requests that are sent before answers are read, and bytes that they may ask for: both
/// ends must never wait for room at once.
const MAX_BURST_BYTES: u32 = 64 * 1024;

/// The two servers, and the folder of their trees.
pub(crate) struct Twins {
    openssh: Peer,
    ours: Peer,
    folder: TestFolder,
    /// Who owns the trees, if not root.
    owner: Option<u32>,
    count: usize,
    /// How often each entry of the table was met.
    pub(crate) met: Vec<usize>,
}

/// What is not the same and not in the table.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Differences with the same name are shown once.
    pub(crate) name: String,
    /// What a person has to know.
    pub(crate) words: String,
}

impl Twins {
    /// Starts both.
    pub(crate) fn start(openssh: &Server, ours: &Server, owner: Option<u32>) -> Self {
        let folder = TestFolder::in_memory("differential");
        for side in ["a", "b"] {
            fs::create_dir(folder.path().join(side)).unwrap();
        }
        Self {
            openssh: Peer::start(openssh).0,
            ours: Peer::start(ours).0,
            folder,
            owner,
            count: 0,
            met: vec![0; ALLOWED.len()],
        }
    }

    /// Runs a sequence in two new trees. In bursts, the answer to a request is only waited for when
    /// a later one needs it.
    pub(crate) fn run(&mut self, ops: &[(usize, Op)], bursts: bool) -> Result<(), Difference> {
        self.count += 1;
        let [theirs, ours] = ["a", "b"].map(|side| {
            let outer = self.folder.path().join(side).join(self.count.to_string());
            fs::create_dir(&outer).unwrap();
            let root = outer.join("t");
            plant(&root, self.owner);
            root
        });
        self.openssh.enter(&theirs);
        self.ours.enter(&ours);
        let done = self.ops(ops, bursts);
        let trees = [&theirs, &ours].map(|root| {
            let outer = PathBuf::from(root.parent().unwrap());
            let snapshot = Snapshot::of(&outer);
            uproot(&outer);
            snapshot
        });
        let [theirs, ours] = match done {
            Ok(After::Same | After::Over) => trees,
            Ok(After::Apart) => return Ok(()),
            Ok(After::ButSpecialBits) => trees.map(Snapshot::without_special_bits),
            Err(difference) => {
                self.restart();
                return Err(difference);
            }
        };
        if theirs == ours {
            return Ok(());
        }
        let last = ops.last().map(|(_, op)| op.kind.name());
        Err(Difference {
            name: format!("trees, {}", last.unwrap_or_default()),
            words: format!("  the trees differ\n{}", theirs.differences(&ours)),
        })
    }

    fn ops(&mut self, ops: &[(usize, Op)], bursts: bool) -> Result<After, Difference> {
        let mut done = 0;
        while done < ops.len() {
            let count = if bursts {
                burst_length(&ops[done..])
            } else {
                1
            };
            if let Some(after) = self.burst(ops, done, count)? {
                self.restart();
                return Ok(after);
            }
            done += count;
        }
        // What is left open, so that the next sequence starts with the same numbers.
        let close = |handle| {
            let handle = Argument::Handle(Handle::Of(handle));
            (usize::MAX, Op::new(Kind::Plain(kind::CLOSE), [handle]))
        };
        let left: Vec<_> = self.openssh.open_handles().into_iter().map(close).collect();
        if !left.is_empty() {
            self.burst(&left, 0, left.len())?;
        }
        Ok(After::Same)
    }

    /// Sends `count` of the requests at once, after those that are `done`. Gives what is after it, if
    /// it was the end.
    fn burst(
        &mut self,
        ops: &[(usize, Op)],
        done: usize,
        count: usize,
    ) -> Result<Option<After>, Difference> {
        let burst = &ops[done..done + count];
        let all: Vec<_> = burst.iter().collect();
        let (theirs, ours) = (self.openssh.send(&all), self.ours.send(&all));
        let (theirs, ours) = (self.openssh.receive(theirs), self.ours.receive(ours));
        for (at, (((_, op), theirs), ours)) in burst.iter().zip(&theirs).zip(&ours).enumerate() {
            let allowed = |(_, allowed): &(usize, &crate::allowed::Allowed)| {
                (allowed.is)(op, theirs, ours, &ops[..done + at])
            };
            let mut after = After::Same;
            match ALLOWED.iter().enumerate().find(allowed) {
                Some((number, allowed)) => {
                    self.met[number] += 1;
                    after = allowed.after;
                }
                None if theirs == ours => {}
                None => return Err(difference(op, theirs, ours)),
            }
            if after != After::Same {
                // What was sent together with it has been done to different trees.
                let last = at + 1 == burst.len();
                return Ok(Some(if last { after } else { After::Apart }));
            }
            if *theirs == Outcome::End || *ours == Outcome::End {
                return Ok(Some(After::Same));
            }
            if op.kind == Kind::Plain(kind::CLOSE)
                && *theirs == Outcome::Status(0)
                && let Some(Argument::Handle(Handle::Of(number))) = op.arguments.first()
            {
                self.openssh.forget(*number);
                self.ours.forget(*number);
            }
        }
        Ok(None)
    }

    fn restart(&mut self) {
        self.openssh.restart();
        self.ours.restart();
    }
}

fn difference(op: &Op, theirs: &Outcome, ours: &Outcome) -> Difference {
    Difference {
        name: format!("{}: {} or {}", op.kind.name(), theirs.class(), ours.class()),
        words: format!("  {op:?}\n    OpenSSH {theirs:?}\n    ours    {ours:?}\n"),
    }
}

/// How many of them can be sent at once.
fn burst_length(ops: &[(usize, Op)]) -> usize {
    let mut room = MAX_BURST_BYTES;
    for (count, (_, op)) in ops.iter().enumerate() {
        let cost = op.arguments.iter().map(|argument| match argument {
            Argument::Text(text) => u32::try_from(text.0.len()).unwrap(),
            Argument::Number(number) if op.kind == Kind::Plain(kind::READ) => *number,
            _ => 1_000,
        });
        let cost = cost.fold(0, u32::saturating_add);
        // After a handle is given or closed, the next requests need to know.
        let alone = op.opens()
            || op.kind == Kind::Plain(kind::CLOSE)
            || may_end(op)
            || cost > room
            || !matches!(
                op.kind,
                Kind::Plain(kind::OPEN..=kind::SYMLINK) | Kind::Extended(_)
            );
        if alone {
            return count.max(1);
        }
        room -= cost;
    }
    ops.len()
}
