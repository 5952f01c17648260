//! Many small files, in and out.

use std::{fs, io, path::Path};

use anyhow::ensure;

use crate::{
    Options,
    contest::{self, Way},
    report::{Against, Verdict},
    rig::{Rig, clear, words},
};

/// Folders, with as many files in each as [`FILES_EACH`] says.
const FOLDERS: u64 = 10;

/// Files in a folder.
const FILES_EACH: u64 = 1_000;

/// Size of a file, in bytes.
const FILE_BYTES: usize = 4 * 1024;

/// Most of OpenSSH's time that our client and server may take.
const TARGET: f64 = 0.25;

/// Measures get and put of a tree.
pub(crate) fn measure(rig: &Rig, options: &Options) -> anyhow::Result<Vec<Verdict>> {
    let (from, to) = (rig.path("tree"), rig.path("tree-copy"));
    let files = FILES_EACH * options.scale / 100;
    plant(&from, FOLDERS, files, FILE_BYTES)?;
    let (here, there) = (from.display().to_string(), to.display().to_string());
    let mut verdicts = Vec::new();
    for (verb, cli) in [
        ("get", ["pull", "-r", &rig.remote(&from), &there]),
        ("put", ["push", "-r", &here, &rig.remote(&to)]),
    ] {
        let ways = vec![
            Way::new("cp -r", words(&["cp", "-r", &here, &there])),
            Way::new(
                "sftp + sftp-server, -rp",
                // As ours does: with modes and times.
                rig.openssh(&format!("{verb} -rp {here} {there}\n")),
            ),
            Way::new("agent-cli + vsock-agent", rig.cli(&cli)),
        ];
        let check = || whole(&to, FOLDERS, files);
        let room = || Ok(rig.make_room(&to, FOLDERS * files * FILE_BYTES as u64 * 4)?);
        let times = contest::run(ways, options.runs, room, check)?;
        let [floor, theirs, ours] = &times[..] else {
            unreachable!("three ways")
        };
        let against = Against { theirs, floor };
        let what = format!("{verb} of 10,000 files with modes and times, both ours");
        verdicts.push(against.ratio(what, ours, TARGET));
    }
    clear(&from);
    clear(&to);
    Ok(verdicts)
}

/// Makes `folders` with `files` each of this size.
pub(crate) fn plant(root: &Path, folders: u64, files: u64, size: usize) -> io::Result<()> {
    for folder in 0..folders {
        let folder = root.join(format!("folder-{folder}"));
        fs::create_dir_all(&folder)?;
        for file in 0..files {
            let name = format!("file-{file}");
            fs::write(
                folder.join(&name),
                name.bytes().cycle().take(size).collect::<Vec<_>>(),
            )?;
        }
    }
    Ok(())
}

/// Counts what has arrived, and looks at the last file.
pub(crate) fn whole(root: &Path, folders: u64, files: u64) -> anyhow::Result<()> {
    for folder in 0..folders {
        let folder = root.join(format!("folder-{folder}"));
        let there = fs::read_dir(&folder)?.count();
        ensure!(
            u64::try_from(there)? == files,
            "{there} files in {}",
            folder.display()
        );
    }
    let last = format!("file-{}", files - 1);
    let data = fs::read(root.join(format!("folder-{}", folders - 1)).join(&last))?;
    ensure!(
        last.bytes()
            .cycle()
            .zip(&data)
            .all(|(one, other)| one == *other),
        "other contents"
    );
    Ok(())
}
