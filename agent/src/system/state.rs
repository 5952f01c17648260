//! State and metrics of the guest: processors, memory, disks, file systems, network, processes.
//!
//! Called by `api/state.rs` and `api/metrics.rs`. `sources.rs` and `filesystems.rs` read the kernel's files,
//! pure functions parse them, and there are three output formats:
//!
//! ```text
//! /proc /sys /etc ─► sources ─► Snapshot ─┬─► instance   GET /1.0/state
//! statvfs ─────────► filesystems ─────────┼─► numbers    GET /1.0/metrics
//!                                         └─► text       GET /metrics
//! ```
//!
//! A value that cannot be read is left out or 0. Between two requests, only the file systems that hang are
//! stored.

mod cpu;
mod disks;
mod filesystems;
mod instance;
mod memory;
mod mounts;
mod network;
mod numbers;
mod page;
mod processes;
mod sources;
mod system;
mod text;

use std::io;

use vsock_agent_protocol::{metrics::IncusMetrics, state::InstanceState, version::Family};

use filesystems::Prober;
use sources::{Snapshot, Sources};

use crate::system::blocking::run_blocking;

pub(crate) use text::{AgentNumbers, CONTENT_TYPE};

/// Reads the state of the guest. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct StateReader {
    sources: Sources,
    prober: Prober,
}

/// The state cannot be read or encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the state of the guest")]
pub(crate) struct StateError(#[from] io::Error);

impl StateReader {
    /// The state in the format of this host flavour.
    ///
    /// # Errors
    ///
    /// [`StateError`] when no thread can be started.
    pub(crate) async fn state(&self, family: Family) -> Result<InstanceState, StateError> {
        Ok(instance::state(self.snapshot().await?, family))
    }

    /// The metrics in Incus's format, which converts to LXD's. Incus counts kernel threads as processes.
    ///
    /// # Errors
    ///
    /// [`StateError`] when no thread can be started.
    pub(crate) async fn metrics(&self, family: Family) -> Result<IncusMetrics, StateError> {
        let snapshot = self.snapshot().await?;
        let filesystems = self.prober.measure(self.sources.clone()).await?;
        Ok(numbers::metrics(snapshot, filesystems, family))
    }

    /// The metrics of the guest and of the agent in Prometheus's text format.
    ///
    /// # Errors
    ///
    /// As [`StateReader::state`], or when the text cannot be encoded.
    pub(crate) async fn text(&self, agent: AgentNumbers) -> Result<String, StateError> {
        let snapshot = self.snapshot().await?;
        let filesystems = self.prober.measure(self.sources.clone()).await?;
        Ok(text::write(&snapshot, &filesystems, &agent)?)
    }

    async fn snapshot(&self) -> io::Result<Snapshot> {
        let sources = self.sources.clone();
        run_blocking(move || sources.read()).await
    }
}
