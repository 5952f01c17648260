//! What is remembered of a running demo VM, so that another process can end it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context as _;
use harness::{TestVm, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Time the processes have to end once they were asked to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A demo VM that was started.
#[derive(Debug)]
pub(super) struct Record {
    /// Its sockets. The name is unique and on each of its processes' command lines.
    scratch: PathBuf,
    processes: Vec<Pid>,
    pub(super) endpoint: String,
}

impl Record {
    /// Gives what was written last, if there is anything.
    pub(super) fn read() -> Option<Self> {
        let text = fs::read_to_string(path()).ok()?;
        let mut lines = text.lines();
        let scratch = lines.next()?.into();
        let endpoint = lines.next()?.to_owned();
        let processes = lines
            .map(|id| id.parse().map(Pid::from_raw))
            .collect::<Result<_, _>>();
        Some(Self {
            scratch,
            processes: processes.ok()?,
            endpoint,
        })
    }

    /// Writes down how to find `vm` again.
    pub(super) fn write(vm: &TestVm) -> anyhow::Result<Self> {
        let mut text = format!("{}\n{}\n", vm.scratch().display(), vm.endpoint());
        for id in vm.process_ids() {
            text += &format!("{id}\n");
        }
        fs::write(path(), text).with_context(|| format!("writing {}", path().display()))?;
        Self::read().context("reading back what was written")
    }

    /// Tells whether all of its processes are there.
    pub(super) fn is_running(&self) -> bool {
        self.processes.iter().all(|id| self.owns(*id))
    }

    /// Ends its processes and removes what they leave.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for id in self.processes.iter().filter(|id| self.owns(**id)) {
                // It may have gone since we looked.
                let _ = kill(*id, signal);
            }
            let gone = || !self.processes.iter().any(|id| self.owns(*id));
            if eventually(END_TIMEOUT, async || gone()).await {
                break;
            }
        }
        if self.scratch.exists() {
            fs::remove_dir_all(&self.scratch)
                .with_context(|| format!("removing {}", self.scratch.display()))?;
        }
        fs::remove_file(path()).with_context(|| format!("removing {}", path().display()))
    }

    /// Tells whether that id is still the process we started: ids are used again.
    fn owns(&self, id: Pid) -> bool {
        let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&*self.scratch.to_string_lossy())
    }
}

fn path() -> PathBuf {
    super::folder().join("running")
}
