//! Our SFTP server and OpenSSH's, side by side: random requests to both, on twin trees, and
//! everything that can be seen must be the same but for what [`allowed`] lists.
//!
//! The sequences are the same each time. `DIFFERENTIAL_SEED` gives others, those of a number or with
//! `fresh` some that nobody has seen; `DIFFERENTIAL_SEQUENCES` sets how many there are.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise, and says what it did"
)]

mod allowed;
mod generate;
mod op;
mod outcome;
mod peer;
mod run;
mod tree;
mod wire;

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path, thread};

use harness::{Random, TestAgent, TestFolder, vm::build_for_here};
use nix::unistd::{Uid, User};

use crate::{
    op::Op,
    peer::Server,
    run::{Difference, Twins},
};

/// Where sequences come from unless another is named: a change is not blamed for what it did not do.
const SEED: u64 = 1;

/// Sequences as root.
const SEQUENCES: u64 = 10_000;

/// Sequences as a user.
const USER_SEQUENCES: u64 = 2_000;

/// The user `nobody`, and their group (Debian's base-passwd). Their home is not there, so both servers
/// start in `/`.
const NOBODY: u32 = 65534;

/// Pairs of servers at work at once.
const PAIRS: u64 = 4;

/// Most differences that are shown of one run.
const MAX_SHOWN: usize = 50;

#[test]
fn ten_thousand_random_sequences_differ_in_nothing_that_is_not_listed() {
    let agent = TestAgent::start();
    let user = User::from_uid(Uid::effective()).unwrap().expect("a user");
    let openssh = Server::OpenSsh {
        user: None,
        home: user.dir,
    };
    compare(&openssh, &Server::Agent(agent.socket()), None, SEQUENCES);
}

#[tokio::test]
async fn nor_do_those_of_a_user_who_may_not_do_everything() {
    if !Uid::effective().is_root() {
        // So it was in the other test.
        return;
    }
    let folder = TestFolder::in_memory("nobody");
    let program = folder.path().join("vsock-agent");
    fs::copy(build_for_here().await.unwrap().agent, &program).unwrap();
    let openssh = Server::OpenSsh {
        user: Some(NOBODY),
        home: "/".into(),
    };
    let arguments = ["sftp-server", "--user", "nobody"].map(str::to_owned);
    let ours = Server::Program(program, arguments.into());
    compare(&openssh, &ours, Some(NOBODY), USER_SEQUENCES);
}

#[test]
fn the_table_of_differences_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).unwrap();
    let mut table = String::from("| difference | reason |\n| --- | --- |\n");
    for allowed in allowed::ALLOWED {
        let _ = writeln!(table, "| {} | {} |", allowed.what, allowed.why);
    }
    assert!(text.contains(&table), "README.md should have:\n{table}");
}

fn compare(openssh: &Server, ours: &Server, owner: Option<u32>, sequences: u64) {
    let seed = match env::var("DIFFERENTIAL_SEED").as_deref() {
        Ok("fresh") => Random::fresh_seed(),
        Ok(number) => number.parse().expect("a number, or `fresh`"),
        Err(_) => SEED,
    };
    let sequences = number("DIFFERENTIAL_SEQUENCES").unwrap_or(sequences);
    let mut found = BTreeMap::new();
    let mut met = vec![0; allowed::ALLOWED.len()];
    thread::scope(|scope| {
        let pairs = (0..PAIRS).map(|pair| {
            scope.spawn(move || {
                let mut twins = Twins::start(openssh, ours, owner);
                let mut found = BTreeMap::new();
                for number in (pair..sequences).step_by(usize::try_from(PAIRS).unwrap()) {
                    one(&mut twins, seed, number, &mut found);
                }
                (found, twins.met)
            })
        });
        for pair in pairs.collect::<Vec<_>>() {
            let (more, times) = pair.join().expect("a server has failed: see above");
            found.extend(more);
            for (sum, times) in met.iter_mut().zip(times) {
                *sum += times;
            }
        }
    });
    println!("{sequences} sequences, seed {seed}");
    for (allowed, times) in allowed::ALLOWED.iter().zip(&met) {
        println!("{times:>6} times: {}", allowed.what);
    }
    let mut report = String::new();
    for (name, words) in found.iter().take(MAX_SHOWN) {
        let _ = writeln!(report, "{name}\n{words}");
    }
    assert!(
        found.is_empty(),
        "DIFFERENTIAL_SEED={seed}: {} differences\n{report}",
        found.len()
    );
}

/// Runs a sequence, and adds what differs, made as short as it can be.
fn one(twins: &mut Twins, seed: u64, number: u64, found: &mut BTreeMap<String, String>) {
    let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let bursts = random.percent(30);
    let ops = generate::sequence(&mut random);
    let Err(mut difference) = twins.run(&ops, bursts) else {
        return;
    };
    if found.contains_key(&difference.name) || found.len() >= MAX_SHOWN {
        return;
    }
    let ops = shrink(twins, ops, bursts, &mut difference);
    let mut words = format!(
        "  sequence {number}{}\n",
        if bursts { ", in bursts" } else { "" }
    );
    for (number, op) in &ops {
        let _ = writeln!(words, "    {number:>2} {op:?}");
    }
    words += &difference.words;
    found.entry(difference.name).or_insert(words);
}

/// Leaves out, one after the other, what the difference does not need.
fn shrink(
    twins: &mut Twins,
    mut ops: Vec<(usize, Op)>,
    bursts: bool,
    difference: &mut Difference,
) -> Vec<(usize, Op)> {
    for at in (0..ops.len()).rev() {
        let mut fewer = ops.clone();
        fewer.remove(at);
        match twins.run(&fewer, bursts) {
            Err(same)
                if same.name == difference.name
                    || same.name.starts_with("trees") && difference.name.starts_with("trees") =>
            {
                *difference = same;
                ops = fewer;
            }
            _ => {}
        }
    }
    ops
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}
