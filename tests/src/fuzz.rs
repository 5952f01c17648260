//! What is done with bytes that nobody thought of, and what must hold then.
//!
//! A [`Target`] is run from two places: `tests/fuzz/` gives it the inputs that libFuzzer finds by
//! coverage, on a nightly toolchain, and `tests/api/fuzz.rs` the committed corpus and [`Mutator`]'s
//! changes of it, on every toolchain. A target panics when something does not hold.

mod agent;
mod confined;
mod control;
mod guest_api;
pub(crate) mod hostile;
mod http_body;
mod http_head;
mod mutate;
mod sftp;
mod sftp_client;
mod sftp_server;
mod websocket;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use self::{
    control::ControlJson,
    guest_api::GuestApi,
    http_body::HttpBody,
    http_head::HttpHead,
    mutate::Mutator,
    sftp::SftpDecode,
    sftp_client::SftpClient,
    sftp_server::SftpServer,
    websocket::{ExecFrames, WebsocketFrames},
};

/// Something that takes bytes from a stranger.
pub trait Target {
    /// What its corpus and its file in `tests/fuzz/fuzz_targets/` are called.
    const NAME: &'static str;

    /// Mutations that take a few seconds in a debug build.
    const RUNS: u32;

    /// Sets up what all inputs share.
    fn start() -> Self;

    /// Takes one input.
    ///
    /// # Panics
    ///
    /// When something does not hold that must hold for every input.
    fn run(&self, data: &[u8]);
}

/// The folder of the fuzz targets.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The committed inputs of a target, in the order of their names. `exec_frames` is a link, as it has
/// the same as `websocket_frames`.
#[must_use]
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    assert!(!inputs.is_empty(), "no corpus in {}", folder.display());
    inputs.sort();
    inputs
}
