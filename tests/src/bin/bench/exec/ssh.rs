//! OpenSSH over vsock: one command per connection, and many on the connection of a master.
//!
//! Its connections come from this program once more, which hands the socket over, as systemd's
//! `systemd-ssh-proxy` does.

use std::{
    env, fs,
    io::{IoSlice, stdout},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use harness::{RawClient, eventually};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tokio::process::{Child, Command};
use tokio_util::either::Either;

/// The first argument of the program that connects.
pub(crate) const WORD: &str = "ssh-proxy";

/// Time for the master to have its connection.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A client's configuration and keys. `Drop` ends the master.
pub(super) struct Ssh {
    folder: PathBuf,
    master: Option<Child>,
}

/// What is needed in the guest: the server's key, who may come in, and the configuration.
pub(super) const GUEST_FILES: [&str; 3] = ["host", "user.pub", "sshd_config"];

/// The folder of [`GUEST_FILES`] in the guest.
pub(super) const GUEST_FOLDER: &str = "/etc/ssh";

impl Ssh {
    /// Makes keys and configurations in `folder`, for the server at `endpoint`.
    pub(super) async fn create(folder: PathBuf, endpoint: &str) -> anyhow::Result<Self> {
        fs::create_dir(&folder)?;
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            let status = keygen.arg(folder.join(key)).status().await?;
            ensure!(status.success(), "ssh-keygen: {status}");
        }
        let server = format!(
            "HostKey {GUEST_FOLDER}/host\nAuthorizedKeysFile {GUEST_FOLDER}/user.pub\n\
             StrictModes no\nUsePAM no\nPidFile none\nPrintMotd no\nPrintLastLog no\n\
             PermitRootLogin prohibit-password\nMaxSessions 200\n"
        );
        fs::write(folder.join("sshd_config"), server)?;
        let client = format!(
            "Host guest\nUser root\nIdentitiesOnly yes\nIdentityFile {}\nLogLevel ERROR\n\
             UserKnownHostsFile /dev/null\nStrictHostKeyChecking no\n\
             ProxyCommand {} {WORD} {endpoint}\nProxyUseFdpass yes\n",
            folder.join("user").display(),
            env::current_exe()?.display(),
        );
        fs::write(folder.join("config"), client)?;
        Ok(Self {
            folder,
            master: None,
        })
    }

    /// The folder with [`GUEST_FILES`].
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the master, and waits for its connection.
    pub(super) async fn start_master(&mut self) -> anyhow::Result<()> {
        let socket = self.folder.join("master");
        let mut master = Command::new("ssh");
        master.arg("-F").arg(self.folder.join("config"));
        master.args(["-M", "-N", "-S"]).arg(&socket).arg("guest");
        // It complains of sessions with a terminal whose input is a pipe.
        master.stdin(Stdio::null()).stderr(Stdio::null());
        self.master = Some(master.kill_on_drop(true).spawn()?);
        let is_up = eventually(START_TIMEOUT, async || socket.exists()).await;
        ensure!(is_up, "ssh does not connect");
        Ok(())
    }

    /// What runs a command on a connection of its own.
    pub(super) fn alone(&self) -> Vec<String> {
        self.words(&[])
    }

    /// The same on the connection of the master.
    pub(super) fn by_master(&self) -> Vec<String> {
        let master = self.folder.join("master").display().to_string();
        // It must not connect if there is no master.
        self.words(&["-o", "ProxyCommand=false", "-S", &master])
    }

    fn words(&self, options: &[&str]) -> Vec<String> {
        let config = self.folder.join("config").display().to_string();
        let words = ["ssh", "-F", &config]
            .into_iter()
            .chain(options.iter().copied());
        words.chain(["guest"]).map(str::to_owned).collect()
    }
}

/// What the program that connects does: its standard output is a socket, and gets the connection.
pub(crate) async fn connect(words: &[String]) -> ExitCode {
    match try_connect(words).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn try_connect(words: &[String]) -> anyhow::Result<()> {
    let endpoint = words.first().context("no endpoint")?;
    let stream = RawClient::at(endpoint).try_connect().await?;
    let descriptor = match &stream {
        Either::Left(stream) => stream.as_raw_fd(),
        Either::Right(stream) => stream.as_raw_fd(),
    };
    let rights = [ControlMessage::ScmRights(&[descriptor])];
    // A byte goes with it, as no message may be empty.
    let byte = [IoSlice::new(&[0])];
    let to = stdout().as_raw_fd();
    sendmsg::<UnixAddr>(to, &byte, &rights, MsgFlags::empty(), None)?;
    Ok(())
}
