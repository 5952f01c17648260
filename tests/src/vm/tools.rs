//! Programs that come as crates, at the versions the lab was tried with.

use std::{fs, path::PathBuf};

use tokio::process::Command;

use super::{VmError, command, paths};

/// A program to be had from the registry.
#[derive(Debug)]
pub(super) struct Tool {
    name: &'static str,
    version: &'static str,
    /// Settings of the release profile: a tool used once a day need not be fast, but should be
    /// there soon.
    profile: &'static [(&'static str, &'static str)],
}

/// The vsock device in user space.
pub(super) const VHOST_DEVICE_VSOCK: Tool = Tool {
    name: "vhost-device-vsock",
    version: "0.3.0",
    profile: &[],
};

/// The checker of dependencies.
const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    profile: &[
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
    ],
};

/// Gives the program's path, after it was compiled if it was not there in that version.
pub(super) async fn install(tool: &Tool) -> Result<PathBuf, VmError> {
    let root = paths::lab().join("tools");
    let program = root.join("bin").join(tool.name);
    let installed = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    if !(program.exists() && installed.contains(&format!("\"{} {} (", tool.name, tool.version))) {
        let mut cargo = command::cargo();
        cargo.args([
            "install",
            "--locked",
            tool.name,
            "--version",
            tool.version,
            "--root",
        ]);
        cargo.arg(&root).envs(tool.profile.iter().copied());
        command::run_visibly(&mut cargo).await?;
    }
    Ok(program)
}

/// Checks the dependencies: bans, licences and sources, by the rules in `deny.toml`.
///
/// # Errors
///
/// [`VmError::Command`] if one breaks a rule.
pub async fn deny() -> Result<(), VmError> {
    let program = install(&CARGO_DENY).await?;
    let mut deny = Command::new(program);
    deny.args(["--all-features", "check", "bans", "licenses", "sources"]);
    command::run_visibly(deny.current_dir(paths::repository())).await
}
