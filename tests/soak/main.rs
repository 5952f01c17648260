//! What fails once in a thousand runs: the shipped agent, a process of its own, driven hard.
//!
//! Each test ends with the same question: is the agent as it was before? No process, descriptor,
//! control group or operation may be left.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says what it measured"
)]

mod files;
mod listeners;
mod many;
mod memory;
mod vanish;

use std::{collections::BTreeMap, time::Duration};

use harness::{AgentProcess, eventually};
use vsock_agent_client::{Client, Security};

/// Longest that one command may take on a machine that runs a hundred at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fresh agent and a client of it.
async fn start(name: &str) -> (AgentProcess, Client) {
    let agent = AgentProcess::start(name).await;
    let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
    // From its first command on, the agent keeps its own /proc/self/oom_score_adj open.
    let first = client.exec("true", [""; 0]).output().await;
    assert!(first.unwrap().status.success());
    (agent, client)
}

/// The agent must come back to what it was when nothing ran.
async fn assert_nothing_left(agent: &AgentProcess, client: &Client, before: &Baseline) {
    let clean = async || Baseline::of(agent, client).await.is_within(before);
    if !eventually(PATIENCE, clean).await {
        assert_eq!(
            Baseline::of(agent, client).await,
            *before,
            "something is left"
        );
    }
}

/// What must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Baseline {
    descriptors: BTreeMap<String, usize>,
    children: usize,
    cgroups: usize,
    running: usize,
}

impl Baseline {
    /// Whether there is no more of anything. There may be less: a connection of the client may still have been
    /// closing before.
    fn is_within(&self, before: &Self) -> bool {
        let mut descriptors = self.descriptors.iter();
        descriptors.all(|(kind, count)| before.descriptors.get(kind).is_some_and(|n| count <= n))
            && self.children <= before.children
            && self.cgroups <= before.cgroups
            && self.running <= before.running
    }

    async fn of(agent: &AgentProcess, client: &Client) -> Self {
        let operations = client.operations().await.unwrap();
        Self {
            descriptors: agent.descriptors(),
            children: agent.children(),
            cgroups: agent.cgroups(),
            running: operations
                .iter()
                .filter(|operation| !operation.is_final())
                .count(),
        }
    }
}
