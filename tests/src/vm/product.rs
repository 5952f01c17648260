//! The binaries under test, as they are shipped: static, for any Linux of this processor.

use std::path::PathBuf;

use tokio::process::Command;

use super::{VmError, command, paths};

/// Static programs that may be loaded anywhere. Packed, their relocations take 150 KB less; the
/// start code of glibc knows them since 2.36, which is Debian 12's. Functions that are the same are
/// one (LLD, which is the linker of this toolchain, can do that): 50 KB.
const RUSTFLAGS: &str =
    "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs,--icf=all,-O2";

/// Paths of what was built.
#[derive(Clone, Debug)]
pub struct Product {
    /// `vsock-agent`.
    pub agent: PathBuf,
    /// `agent-cli`.
    pub cli: PathBuf,
}

impl Product {
    /// Builds both binaries; little to do if nothing has changed.
    ///
    /// # Errors
    ///
    /// [`VmError::Command`] with the compiler's words.
    pub async fn build() -> Result<Self, VmError> {
        let triple = host_triple().await?;
        // One by one: built together, each gets what only the other needs of a dependency.
        for package in ["vsock-agent", "vsock-agent-cli"] {
            let mut cargo = command::cargo();
            cargo
                .args(["build", "--release", "--target", &triple, "-p", package])
                .env("RUSTFLAGS", RUSTFLAGS);
            command::run_visibly(&mut cargo).await?;
        }
        let folder = paths::target().join(triple).join("release");
        Ok(Self {
            agent: folder.join("vsock-agent"),
            cli: folder.join("agent-cli"),
        })
    }
}

/// Builds the same for this computer, not optimised and not static: for tests without a VM.
///
/// # Errors
///
/// [`VmError::Command`] with the compiler's words.
pub async fn build_for_here() -> Result<Product, VmError> {
    let mut cargo = command::cargo();
    // All packages: with the features that the tests have given their dependencies already.
    cargo.args(["build", "--quiet", "--workspace", "--bins"]);
    command::run_visibly(&mut cargo).await?;
    let folder = paths::target().join("debug");
    Ok(Product {
        agent: folder.join("vsock-agent"),
        cli: folder.join("agent-cli"),
    })
}

/// Builds the benchmark, optimised: it is the library that is measured, too.
///
/// # Errors
///
/// [`VmError::Command`] with the compiler's words.
pub async fn build_benchmark() -> Result<PathBuf, VmError> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--quiet", "--profile", "measure"]);
    cargo.args(["-p", "agent-tests", "--bin", "bench"]);
    command::run_visibly(&mut cargo).await?;
    Ok(paths::target().join("measure/bench"))
}

async fn host_triple() -> Result<String, VmError> {
    let version = command::run(Command::new("rustc").arg("-vV")).await?;
    let triple = version.lines().find_map(|line| line.strip_prefix("host: "));
    triple
        .map(str::to_owned)
        .ok_or_else(|| VmError::missing("rustc"))
}
