//! The virtio ports by which the host detects the agent before it connects.
//!
//! The host keeps the last bytes of a port in a ring buffer (QEMU's chardev `ringbuf`, 16 bytes with
//! LXD), so a status is short and written repeatedly. A write to a port without a reader would block, so
//! ports are opened with `O_NONBLOCK`, once for each write, and errors are only logged.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// The ports of LXD since 5.20, of earlier LXD, and of Incus.
pub(crate) const KNOWN: [&str; 3] = [
    "/dev/virtio-ports/com.canonical.lxd",
    "/dev/virtio-ports/org.linuxcontainers.lxd",
    "/dev/virtio-ports/org.linuxcontainers.incus",
];

/// Interval of the repeated status, as in LXD's agent. A restarted host detects the agent after it.
const REPEAT: Duration = Duration::from_secs(5);

/// Time after the start in which a port may appear: udev makes its link during the boot, which takes a minute under
/// software emulation.
const APPEARANCE: Duration = Duration::from_secs(60);

/// The status of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// The agent listens.
    Started,
    /// The host has announced its address.
    Connected,
    /// The agent is stopping.
    Stopped,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Started => "STARTED\n",
            Self::Connected => "CONNECTED\n",
            Self::Stopped => "STOPPED\n",
        }
    }
}

/// The status ports. Each status is written to all of them.
#[derive(Debug)]
pub(crate) struct StatusPorts(Vec<PathBuf>);

impl StatusPorts {
    /// Ports at these paths. Missing ones are ignored.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }

    /// Writes a status to every port that exists. Does not block. True if there is a port.
    pub(crate) fn write(&self, status: Status) -> bool {
        let mut has_port = false;
        for path in &self.0 {
            match write_line(path, status.line()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Ok(()) => tracing::trace!(?path, ?status, "status written"),
                Err(error) => tracing::debug!(?path, ?status, %error, "cannot write the status"),
            }
            has_port = true;
        }
        has_port
    }

    /// Repeats [`Status::Started`] while there is a port, and until [`APPEARANCE`]. Never returns.
    pub(crate) async fn repeat(&self) {
        let start = Instant::now();
        let mut may_repeat = true;
        while may_repeat {
            sleep(REPEAT).await;
            may_repeat = self.write(Status::Started) || start.elapsed() < APPEARANCE;
        }
        std::future::pending().await
    }
}

fn write_line(path: &Path, line: &str) -> io::Result<()> {
    let mut port = OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    port.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("agent-port-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test(start_paused = true)]
    async fn the_status_is_repeated_on_every_existing_port() {
        let folder = folder("repeat");
        let paths = ["a", "missing", "b"].map(|name| folder.join(name));
        fs::write(&paths[0], "").unwrap();
        fs::write(&paths[2], "").unwrap();
        let ports = StatusPorts::new(paths.to_vec());
        let some_time = tokio::time::timeout(REPEAT * 2 + REPEAT / 2, ports.repeat());
        some_time.await.unwrap_err();
        for path in [&paths[0], &paths[2]] {
            assert_eq!(fs::read_to_string(path).unwrap(), "STARTED\nSTARTED\n");
        }
        assert!(!paths[1].exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_missing_long_after_the_start_is_not_looked_for() {
        let folder = folder("missing");
        let path = folder.join("port");
        let ports = StatusPorts::new(vec![path.clone()]);
        let mut repeat = std::pin::pin!(ports.repeat());
        let mut wait = async |time| tokio::time::timeout(time, &mut repeat).await.unwrap_err();
        wait(APPEARANCE / 2).await;
        fs::write(&path, "").unwrap();
        wait(APPEARANCE).await;
        assert_ne!(fs::read_to_string(&path).unwrap(), "");
        fs::remove_file(&path).unwrap();
        wait(2 * REPEAT).await;
        fs::write(&path, "").unwrap();
        wait(2 * REPEAT).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_status_port_without_a_reader_does_not_block() {
        let folder = folder("full");
        let path = folder.join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let ports = StatusPorts::new(vec![path.clone()]);
        // Without a reader, opening fails at once.
        ports.write(Status::Started);
        let mut reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        ports.write(Status::Connected);
        // Writes above the capacity fail.
        for _ in 0..20_000 {
            ports.write(Status::Stopped);
        }
        let mut first = [0; 10];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"CONNECTED\n");
        fs::remove_dir_all(&folder).unwrap();
    }
}
