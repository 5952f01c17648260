//! OpenSSH's `sshd` on the loopback, with our agent as its SFTP: for clients that insist on SSH.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use harness::{TestAgent, TestFolder, eventually, free_port};
use nix::unistd::{Uid, User};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use crate::{bridge, succeed};

/// Time for it to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A server with keys of its own. `Drop` kills it.
pub(crate) struct Sshd {
    pub(crate) port: u16,
    /// Who may log in.
    pub(crate) user: String,
    /// Their key.
    pub(crate) key: PathBuf,
    folder: TestFolder,
    _process: Child,
}

impl Sshd {
    pub(crate) async fn start(agent: &TestAgent) -> Self {
        let folder = TestFolder::new("sshd");
        let path = |name: &str| folder.path().join(name);
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path(key));
            succeed(&mut keygen).await;
        }
        let user = User::from_uid(Uid::effective())
            .unwrap()
            .expect("a user")
            .name;
        let port = free_port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {host}\nPidFile none\nLogLevel VERBOSE\n\
             AuthorizedKeysFile {keys}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp {bridge}\n",
            host = path("host").display(),
            keys = path("user.pub").display(),
            bridge = bridge(agent).await,
        );
        fs::write(path("config"), config).unwrap();
        if Uid::effective().is_root() {
            // Where its unprivileged half lives; the package leaves it to the system's service.
            fs::create_dir_all("/run/sshd").unwrap();
            fs::set_permissions("/run/sshd", PermissionsExt::from_mode(0o755)).unwrap();
        }
        // It has to be called by its full path.
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(path("config"));
        sshd.stdin(Stdio::null())
            .stderr(fs::File::create(path("log")).unwrap())
            .kill_on_drop(true);
        let process = sshd.spawn();
        let process = process.unwrap_or_else(|error| panic!("sshd: {error}: make setup"));
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let listens = async || TcpStream::connect(address).await.is_ok();
        assert!(
            eventually(START_TIMEOUT, listens).await,
            "{}",
            fs::read_to_string(path("log")).unwrap()
        );
        Self {
            port,
            user,
            key: path("user"),
            folder,
            _process: process,
        }
    }

    /// What it says of its connections.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap()
    }

    /// A folder that goes with the server.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}
