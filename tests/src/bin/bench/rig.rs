//! What all parts stand on: the binaries as they are shipped, an agent, a folder in memory.

use std::{
    fs::{self, File},
    io::{self, Read as _},
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

    /// Makes room at `path`, in memory that is [warm].
    pub(crate) fn make_room(&self, path: &Path, bytes: u64) -> io::Result<()> {
        clear(path);
        warm(self.folder.path(), bytes)
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

/// Has the kernel touch so much memory and give it back. A virtual machine's host may have taken what
/// was free for long, and whoever gets that first waits for it: everybody is to start alike.
pub(crate) fn warm(folder: &Path, bytes: u64) -> io::Result<()> {
    let path = folder.join("warm");
    let mut zeros = io::repeat(0).take(bytes);
    io::copy(&mut zeros, &mut File::create(&path)?)?;
    fs::remove_file(path)
}

/// Removes a file or a folder, if it is there.
pub(crate) fn clear(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
}
