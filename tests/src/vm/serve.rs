//! The host side of a VM: `agent-cli serve`, as a user runs it.

use std::path::Path;

use super::{Lifetime, VmError, process::Process};

/// A host side that answers guests. `Drop` ends it at once, as a crash would.
#[derive(Debug)]
pub struct Serve {
    _process: Process,
}

impl Serve {
    /// Starts `cli` with the configuration in `config`.
    pub(super) fn start(cli: &Path, config: &Path, log: &Path) -> Result<Self, VmError> {
        let arguments = [
            format!("AGENT_CLI_CONFIG={}", config.display()),
            cli.display().to_string(),
            "serve".to_owned(),
        ];
        // `env` becomes the program.
        let process = Process::start(Path::new("env"), &arguments, log, Lifetime::Owned);
        Ok(Self {
            _process: process.map_err(VmError::io("starting `agent-cli serve`"))?,
        })
    }
}
