//! One large file, in and out.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use anyhow::ensure;

use crate::{
    Options,
    contest::{self, Way},
    report::{Against, Verdict},
    rig::{Rig, clear, words},
};

/// Size of the file, in bytes.
pub(crate) const BYTES: u64 = 1024 * 1024 * 1024;

/// Most of OpenSSH's time that OpenSSH's client may take with our server.
const SERVER_TARGET: f64 = 1.0;

/// Most of OpenSSH's time that our client may take with our server.
const BOTH_TARGET: f64 = 0.9;

/// Measures get and put.
pub(crate) fn measure(rig: &Rig, options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let (from, to) = (rig.path("large"), rig.path("copy"));
    let bytes = BYTES * options.scale / 100;
    fill(&from, bytes)?;
    let (here, there) = (from.display().to_string(), to.display().to_string());
    let mut verdicts = Vec::new();
    for (verb, cli) in [
        ("get", ["pull", &rig.remote(&from), &there]),
        ("put", ["push", &here, &rig.remote(&to)]),
    ] {
        let batch = format!("{verb} {here} {there}\n");
        let ways = vec![
            Way::new("cp", words(&["cp", &here, &there])),
            Way::new("sftp + sftp-server", rig.openssh(&batch)),
            Way::new("sftp + vsock-agent", rig.openssh_and_ours(&batch)),
            Way::new("agent-cli + vsock-agent", rig.cli(&cli)),
        ];
        let room = || Ok(rig.make_room(&to, bytes * 2)?);
        let times = contest::run(ways, options.runs, room, || same(&from, &to))?;
        let [floor, theirs, server, both] = &times[..] else {
            unreachable!("four ways")
        };
        let against = Against { theirs, floor };
        verdicts.push(against.ratio(
            format!("{verb} of 1 GiB, our server"),
            server,
            SERVER_TARGET,
        ));
        verdicts.push(against.ratio(format!("{verb} of 1 GiB, both ours"), both, BOTH_TARGET));
    }
    clear(&from);
    clear(&to);
    Ok(verdicts)
}

/// Writes so many random bytes.
pub(crate) fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut random = File::open("/dev/urandom")?.take(bytes);
    io::copy(&mut random, &mut File::create(path)?).map(drop)
}

/// Refuses a copy that is not whole.
pub(crate) fn same(from: &Path, to: &Path) -> anyhow::Result<()> {
    /// Compared at once, in bytes.
    const PIECE_BYTES: u64 = 1024 * 1024;
    ensure!(
        fs::metadata(from)?.len() == fs::metadata(to)?.len(),
        "the sizes differ"
    );
    let (mut from, mut to) = (File::open(from)?, File::open(to)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        (&mut from).take(PIECE_BYTES).read_to_end(&mut left)?;
        (&mut to).take(PIECE_BYTES).read_to_end(&mut right)?;
        ensure!(left == right, "the contents differ");
        if left.is_empty() {
            return Ok(());
        }
    }
}
