//! What all parts stand on: the binaries as they are shipped, an agent, a folder in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use harness::{AgentProcess, TestFolder, vm::Product};

/// OpenSSH's server for SFTP, where Debian has it.
const OPENSSH_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// A running agent, and room for files.
pub(crate) struct Rig {
    pub(crate) product: Product,
    pub(crate) agent: AgentProcess,
    folder: TestFolder,
}

impl Rig {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Ok(Self {
            product: Product::build().await?,
            agent: AgentProcess::start("bench").await,
            folder: TestFolder::in_memory("bench"),
        })
    }

    /// A path in the folder, which is in memory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path of the agent, in the words of the command line.
    pub(crate) fn remote(&self, path: &Path) -> String {
        format!("{}:{}", self.agent.endpoint(), path.display())
    }

    pub(crate) fn cli(&self, words: &[&str]) -> Command {
        let mut cli = Command::new(&self.product.cli);
        cli.args(words).arg("--plain");
        cli
    }

    /// OpenSSH's client with one command, and OpenSSH's server.
    pub(crate) fn openssh(&self, batch: &str) -> Command {
        self.sftp(OPENSSH_SERVER, batch)
    }

    /// OpenSSH's client with one command, and our server.
    pub(crate) fn openssh_and_ours(&self, batch: &str) -> Command {
        self.sftp(
            &format!("{} sftp-server", self.product.agent.display()),
            batch,
        )
    }

    /// The same with another agent and another folder.
    pub(crate) async fn fresh(&self) -> Self {
        Self {
            product: self.product.clone(),
            agent: AgentProcess::start("bench-fresh").await,
            folder: TestFolder::in_memory("bench"),
        }
    }

    fn sftp(&self, server: &str, batch: &str) -> Command {
        sftp(&self.path("batch"), server, batch)
    }
}

/// OpenSSH's client with one command, and this server. The command is written to `file`.
#[expect(
    clippy::expect_used,
    reason = "a file in a folder of ours can be written"
)]
pub(crate) fn sftp(file: &Path, server: &str, batch: &str) -> Command {
    fs::write(file, batch).expect("the batch file");
    let mut sftp = Command::new("sftp");
    sftp.arg("-q").arg("-b").arg(file).arg("-D").arg(server);
    sftp
}

/// A command of these words.
pub(crate) fn words(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Removes a file or a folder, if it is there.
pub(crate) fn clear(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
}
