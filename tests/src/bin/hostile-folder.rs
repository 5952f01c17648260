//! A user without privileges who owns the folder of some monitors' sockets, and puts everything there that a
//! file system has: links to files of others, pipes, folders, sockets that nobody accepts on.
//!
//! `hostile-folder FOLDER OUTSIDE SEED`: `FOLDER` and the folder it is in are this user's, `OUTSIDE` is somebody
//! else's. It goes on until it is killed.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test program stops at the first surprise"
)]

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        fs::{MetadataExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    thread,
};

use harness::Random;
use nix::{sys::stat::Mode, unistd::mkfifo};

/// What a link may lead to, in `OUTSIDE`.
const TARGETS: [&str; 4] = ["secret", "program", "folder", "folder/vm1_9000"];

/// Changes between two swaps of the whole folder.
const FOLDER_SWAPS: usize = 50;

struct Attacker {
    folder: PathBuf,
    outside: PathBuf,
    random: Random,
    /// Sockets that are alive as long as they are here.
    sockets: Vec<UnixListener>,
    prepared: usize,
}

impl Attacker {
    /// Replaces names at random, and now and then the folder.
    fn disturb(mut self) {
        for round in 0.. {
            let names = names(&self.folder);
            let name = if names.is_empty() {
                "vm1_9000".into()
            } else {
                self.random.pick(&names).clone()
            };
            let _ = self.replace(&self.folder.join(name));
            if round % FOLDER_SWAPS == 0 {
                let _ = self.swap_folder();
            }
        }
    }

    fn replace(&mut self, path: &Path) -> io::Result<()> {
        if fs::remove_file(path).is_err() {
            let _ = fs::remove_dir_all(path);
        }
        match self.random.below(8) {
            0 | 1 => symlink(self.outside.join(self.random.pick(&TARGETS)), path),
            2 => mkfifo(path, Mode::S_IRWXU).map_err(Into::into),
            3 => fs::create_dir(path),
            4 => fs::write(path, "a file"),
            5 => UnixListener::bind(path).map(drop),
            6 => {
                self.sockets.truncate(20);
                self.sockets.insert(0, UnixListener::bind(path)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// For a moment the folder's name leads outside.
    fn swap_folder(&mut self) -> io::Result<()> {
        let aside = self.folder.with_extension("aside");
        fs::rename(&self.folder, &aside)?;
        let swapped = symlink(self.outside.join("folder"), &self.folder);
        thread::yield_now();
        let _ = fs::remove_file(&self.folder);
        fs::rename(aside, &self.folder)?;
        swapped
    }

    /// Waits for whatever somebody else makes, half made or whole, and puts a link in its place.
    fn race(mut self) {
        loop {
            for name in names(&self.folder) {
                let path = self.folder.join(&name);
                let bytes = name.as_encoded_bytes();
                let is_unfinished = bytes.ends_with(b"~") || bytes.starts_with(b".vsock-agent-");
                if (is_unfinished || self.random.percent(10)) && is_roots(&path) {
                    let _ = self.put_link(&path);
                }
            }
        }
    }

    fn put_link(&mut self, path: &Path) -> io::Result<()> {
        self.prepared += 1;
        let link = self.folder.join(format!("link{}", self.prepared % 8));
        let _ = fs::remove_file(&link);
        symlink(self.outside.join(self.random.pick(&TARGETS)), &link)?;
        if fs::symlink_metadata(path)?.is_dir() {
            fs::rename(path, self.folder.join(format!("aside{}", self.prepared)))?;
        }
        fs::rename(link, path)
    }
}

fn is_roots(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.uid() == 0)
}

fn names(folder: &Path) -> Vec<OsString> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.file_name()).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, outside, seed] = &arguments[..] else {
        panic!("hostile-folder FOLDER OUTSIDE SEED");
    };
    let seed: u64 = seed.parse().unwrap();
    let attacker = |number| Attacker {
        folder: folder.into(),
        outside: outside.into(),
        random: Random::new(seed + number),
        sockets: Vec::new(),
        prepared: 0,
    };
    let (first, second) = (attacker(0), attacker(1));
    thread::scope(|scope| {
        scope.spawn(|| first.disturb());
        scope.spawn(|| second.race());
    });
}
