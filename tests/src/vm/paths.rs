//! Where the lab keeps its things: below Cargo's target folder, so that `cargo clean` is enough.

use std::{env, path::PathBuf};

/// The top of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or(package.clone(), PathBuf::from)
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    // A relative CARGO_TARGET_DIR counts from where Cargo was started, which is the top here.
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || repository().join("target"),
        |folder| repository().join(folder),
    )
}

/// What is made once and used by every VM.
#[must_use]
pub fn lab() -> PathBuf {
    target().join("lab")
}
