//! The fuzz targets without a fuzzer: every corpus as it is, and a bounded number of random changes.
//!
//! The changes are the same each time. `FUZZ_SEED` gives those of another number, `FUZZ_SEED=fresh` such
//! that nobody has seen; `FUZZ_RUNS` sets their number for each target.

use std::{
    collections::BTreeSet,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use harness::{
    Random,
    fuzz::{
        self, ControlJson, ExecFrames, GuestApi, HttpBody, HttpHead, Mutator, SftpClient,
        SftpDecode, SftpServer, Target, WebsocketFrames,
    },
};

/// The seed unless another is asked for: a failure is then a change's, and not the day's.
const SEED: u64 = 1;

#[test]
fn no_control_message_breaks_its_reader() {
    replay::<ControlJson>();
}

#[test]
fn no_sftp_frame_breaks_its_reader() {
    replay::<SftpDecode>();
}

#[test]
fn no_sftp_server_breaks_the_client() {
    replay::<SftpClient>();
}

#[test]
fn no_sftp_frame_breaks_the_agent() {
    replay::<SftpServer>();
}

#[test]
fn no_body_breaks_the_agent() {
    replay::<HttpBody>();
}

#[test]
fn no_head_breaks_the_agent() {
    replay::<HttpHead>();
}

#[test]
fn no_guest_breaks_the_agent() {
    replay::<GuestApi>();
}

#[test]
fn no_websocket_frame_breaks_the_agent() {
    replay::<WebsocketFrames>();
}

#[test]
fn no_websocket_frame_breaks_a_command() {
    replay::<ExecFrames>();
}

#[test]
fn every_fuzz_target_is_replayed_here() {
    let replayed = [
        ControlJson::NAME,
        ExecFrames::NAME,
        GuestApi::NAME,
        HttpBody::NAME,
        HttpHead::NAME,
        SftpClient::NAME,
        SftpDecode::NAME,
        SftpServer::NAME,
        WebsocketFrames::NAME,
    ];
    let replayed: BTreeSet<_> = replayed.map(str::to_owned).into();
    for folder in ["fuzz_targets", "corpus"] {
        let entries = fs::read_dir(fuzz::folder().join(folder)).unwrap();
        let stem =
            |path: std::path::PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let there = entries.map(|entry| stem(entry.unwrap().path()));
        assert_eq!(there.collect::<BTreeSet<_>>(), replayed, "{folder}");
    }
}

fn replay<T: Target>() {
    let target = T::start();
    let corpus = fuzz::corpus(T::NAME);
    for (name, data) in &corpus {
        run(&target, data, &format!("corpus {name}"));
    }
    let seed = match env::var("FUZZ_SEED").as_deref() {
        Ok("fresh") => Random::fresh_seed(),
        Ok(number) => number.parse().expect("a number, or `fresh`"),
        Err(_) => SEED,
    };
    let runs = number("FUZZ_RUNS").unwrap_or(T::RUNS.into());
    let mut mutator = Mutator::new(seed, corpus.into_iter().map(|(_, data)| data).collect());
    for count in 0..runs {
        let data = mutator.make();
        run(&target, &data, &format!("FUZZ_SEED={seed}, change {count}"));
    }
}

fn run<T: Target>(target: &T, data: &[u8], origin: &str) {
    let held = catch_unwind(AssertUnwindSafe(|| target.run(data)));
    let (name, input) = (T::NAME, data.escape_ascii());
    assert!(held.is_ok(), "{name}, {origin}: b\"{input}\"");
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}
